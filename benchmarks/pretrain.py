"""The model of molecules that comes with the package, from a trained one.

    python -m benchmarks.pretrain molecules:N [--note SENTENCE …]

Its weights are rounded to bfloat16, and the copy of the generator without an adversary is left out.
Of the training molecules their fingerprints are kept and a filter that knows them, not themselves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from aigc_ray import catalogue, config, manifest, registry, storage
from aigc_ray import model as models
from aigc_ray.card import card
from aigc_ray.tasks import task_class

REFERENCES = 4000  # molecules whose fingerprints are kept
LEFT_OUT = ("likelihood",)
RECIPE = (
    "steps", "adversarial_steps", "generator_rate", "adversarial_rate", "hidden", "push", "penalty",
)  # fmt: skip
LIMIT = 5_000_000  # bytes of weights


def export(name: str, folder: Path, notes: Sequence[str]) -> None:
    """Write a registered model's folder anew, smaller; its card says the `notes` too."""
    opened = models.Model.open(registry.fetch(name))
    tensors = {}
    for key, tensor in opened.members[0].state_dict().items():
        if key.startswith(LEFT_OUT):
            continue
        if key == "memory.codes":
            tensor = torch.zeros_like(tensor[:REFERENCES])
        elif key == "memory.fingerprints":
            tensor = tensor[:REFERENCES]
        tensors[key] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
    info = {key: value for key, value in opened.info.items() if key != "run"}
    # Who trains it further does so by the usual recipe, not by the last part of this one.
    usual = config.settings(task_class(info["task"])())
    used = {key: info["configuration"][key] for key in RECIPE}
    info["configuration"] |= {key: usual[key] for key in RECIPE}
    info["configuration"] |= {"beside": False, "references": REFERENCES}
    info["training"] |= {"settings": ", ".join(f"{key}={value}" for key, value in used.items())}
    known = catalogue.entry("moses")
    info["data"] = info["data"] | {
        "uri": "the catalogue's moses", "name": f"moses; {known['citation']}",
        "licence": known["licence"],
    }  # fmt: skip
    info["limits"] = [
        *info["limits"],
        *notes,
        "Weights are rounded to bfloat16; the figures are those before. Whether a molecule was in "
        "training is told by a filter that takes a stranger in a hundred for a training molecule.",
    ]
    for path in folder.glob("*"):
        path.unlink()
    models.write(folder, [tensors], info)
    (folder / "card.md").write_text(card(storage.read_json(str(folder / "model.json"))))
    manifest.seal(folder)
    size = (folder / models.WEIGHTS).stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{size} bytes of weights are more than {LIMIT}")
    models.Model.open(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--note", nargs="*", default=[], help="sentences for the model's card")
    options = parser.parse_args()
    task = registry.resolve(options.model).task
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export(options.model, folder, options.note)
        target = Path(registry.__file__).parent / registry.PRETRAINED / task
        target.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
    print(target)


if __name__ == "__main__":
    main()
