"""Protein backbones generated and recognised, beside walks, rules and real windows.

    python -m benchmarks.proteins FOLDER [--seeds N]

Windows of 64 residues of the chains of Docking Benchmark 5 and of the entries in biotite's tests,
split by family. A seed begins the training anew. What is generated is measured by its maps, as
recovered from them (every structure of a draw), and as answered (those that pass the checks). Real
windows, and the generator's walks without an edit or a critic's choice, stand beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from aigc_ray import assess, catalogue, noise, registry, rows
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.model import Model
from aigc_ray.task import Batch, Networks
from aigc_ray.tasks.proteins import backbone, data, decoys, design, geometry, metrics
from aigc_ray.tasks.proteins.assignment import assign, fold_class
from aigc_ray.tasks.proteins.data import LABEL, STRUCTURE, TRACE
from aigc_ray.tasks.proteins.recovery import recover
from aigc_ray.tasks.proteins.task import Proteins
from aigc_ray.train import train
from benchmarks import record

COMMAND = "python -m benchmarks.proteins FOLDER"
SOURCE = "protein_structures"
SEEDS, BATCH, STEPS = 3, 32, 1500
DRAWN, BUILT, ANSWERS = 512, 128, 32  # structures; with backbones; of a class that are asked for
BLUR, BENT = 0.5, 1.5  # angstrom of error: of what is recognised, of decoys
Say = Callable[[str], None]


def generated(model: Model, arm: str, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Traces (N, 64, 3) that maps were made of, and those recovered from the maps, for classes
    (N,)."""
    member = Networks({**model.members[0], "generator": model.members[0][arm]}).eval()
    keys = noise.keys(seed, torch.arange(len(label)))
    known = {LABEL: torch.ones_like(label, dtype=torch.bool)}
    with torch.inference_mode():
        parts = [
            model.task.draw(member, Batch({LABEL: one}, known, torch.ones(len(one)), row)).value
            for one, row in zip(label.split(64), keys.split(64), strict=True)
        ]
    made, found = (torch.cat([part[name] for part in parts]) for name in ("made", TRACE))
    return made, found


def shapes(ca: Tensor, test: Tensor, known: Tensor) -> dict[str, float]:
    """What a set of traces is like, by itself and beside real ones."""
    atoms = torch.cat([backbone.backbone(part) for part in ca[:BUILT].split(32)])
    handed = metrics.right_handed(ca)
    allowed = metrics.ramachandran_allowed(atoms)
    return {
        "bond_ok": metrics.bond_ok(ca),
        "clash_rate": metrics.clash_rate(ca).pairs,
        "structures_with_clashes": metrics.clash_rate(ca).structures,
        "right_handed": handed.right,
        "helices": handed.helices / len(ca),
        "ramachandran_allowed": allowed.allowed,
        "ramachandran_favoured": allowed.favoured,
        "contact_js": metrics.contact_js(geometry.distances(ca), geometry.distances(test)),
        "contact_js_train": metrics.contact_js(geometry.distances(ca), geometry.distances(known)),
        "contacts_a_residue": metrics.contact_count(geometry.distances(ca)),
        "secondary_js": metrics.secondary_js(ca, test),
        "radius_ratio": metrics.radius_ratio(ca),
        "nearest_rmsd": float(metrics.nearest(ca[:BUILT], known).rmsd.mean()),
        "diversity_rmsd": metrics.diversity(ca[:BUILT]),
    }


def recovered(ca: Tensor) -> float:
    """Mean RMSD, angstrom, between structures and those recovered from their maps."""
    found = recover(geometry.distances(ca), geometry.chirality(ca))
    return float(geometry.rmsd(found.ca, ca).mean())


def recognised(model: Model, test: Batch) -> dict[str, float]:
    """How well windows with errors are recognised, beside the rule that gave the clean ones their
    labels, applied to the same coordinates; and real windows told from decoys."""
    trace, right = test.value[TRACE], test.value[STRUCTURE].numpy()
    blurred = decoys.shaken(trace, test.row, BLUR, "benchmark")
    ruled = np.stack([assign(ca) + 1 for ca in blurred.numpy()])
    found = {
        "secondary_structure_acc": _right(model, blurred, right),
        "secondary_structure_acc_rule": float((ruled == right).mean()),
        "secondary_structure_acc_clean": _right(model, trace, right),
    }
    real = design.recognised(model, trace)["plausibility"].numpy()
    other = trace.roll(len(trace) // 2, 0)  # of another file
    kinds = {
        "bent": decoys.bent(trace, test.row, BENT, "benchmark decoys"),
        "joined": decoys.joined(trace, other),
    }
    told = {
        name: design.recognised(model, ca)["plausibility"].numpy() for name, ca in kinds.items()
    }
    for name, one in told.items():
        found[f"plausibility_auc_{name}"] = _auc(real, one)
    found["plausibility_auc"] = _auc(real, np.concatenate([*told.values()]))
    return found


def _right(model: Model, trace: Tensor, right: np.ndarray) -> float:
    told = design.recognised(model, trace)["structure"].argmax(2).numpy() + 1
    return float((told == right).mean())


def _auc(real: np.ndarray, decoy: np.ndarray) -> float:
    flags = np.concatenate([np.ones(len(real)), np.zeros(len(decoy))])
    return float(roc_auc_score(flags, np.concatenate([real, decoy])))


def one(where: Path, seed: int, say: Say) -> dict[str, dict[str, float]]:
    """The figures of a seed, by who they are of."""
    settings = {"num_workers": 0, "seed": seed, "steps": STEPS, "batch_size": BATCH}
    settings |= {"transfer_steps": 0, "validate_every": 500}
    began = time.perf_counter()
    summary = train("proteins", str(where), settings, register=False, fresh=True)
    minutes = (time.perf_counter() - began) / 60
    model = Model.open(registry.fetch(f"{summary['uri']}/model"))
    job = {"data": str(where), "description": load_manifest(str(where))}
    known, test = (_whole(job, model, part) for part in ("train", "test"))
    every = assess.told(model, job, "test")["metrics"]
    found: dict[str, dict[str, float]] = {"aigc": {"train_minutes": minutes}}
    found["aigc"] |= {key: every[key] for key in ("auc", "acc", "structure_acc")}
    found["aigc"] |= recognised(model, test)
    say(f"{seed}: {minutes:.1f} min, {found['aigc']}")
    label = test.value[LABEL][torch.arange(DRAWN) % len(test.row)]
    for name, arm in (("aigc", "generator"), ("unedited", "unedited")):
        raw, ca = generated(model, arm, label, seed)
        here = {"raw_bond_ok": metrics.raw_bond_ok(geometry.distances(raw))}
        here |= {
            "raw_contact_js": metrics.contact_js(*map(geometry.distances, (raw, test.value[TRACE])))
        }
        here |= {"recovery_rmsd_generated": float(geometry.rmsd(ca, raw).mean())}
        here |= shapes(ca, test.value[TRACE], known.value[TRACE])
        classes = [fold_class(assign(one)) for one in ca.numpy()]
        wanted = [data.CLASSES[int(number)] for number in label]
        here["of_its_class"] = float(
            np.mean([a == b for a, b in zip(classes, wanted, strict=True)])
        )
        here["plausible"] = float(
            (design.recognised(model, ca)["plausibility"] > 0.5).float().mean()
        )
        found.setdefault(name, {}).update(here)
        say(f"{seed} {name}: {here}")
    found["aigc"]["recovery_rmsd"] = recovered(test.value[TRACE])
    answers, missing = [], 0
    for name in data.CLASSES:
        for item in model.task.generate(model, {"n": ANSWERS, "seed": seed, "class": name}):
            if isinstance(item, dict):
                answers.append(item["coordinates"])
            else:
                missing += item.missing
    if answers:
        found["answers"] = shapes(torch.tensor(answers), test.value[TRACE], known.value[TRACE])
    found.setdefault("answers", {})["missing"] = missing / (ANSWERS * len(data.CLASSES))
    say(f"{seed} answers: {found['answers']}")
    real = known.value[TRACE]
    found["real"] = shapes(real[torch.randperm(len(real))[:DRAWN]], test.value[TRACE], real)
    return found


def _whole(job: dict[str, Any], model: Model, part: str) -> Batch:
    names = [field.name for field in model.task.schema.fields]
    columns = rows.load(job["data"], job["description"], part, names)
    return model.task.encode(columns, noise.keys(0, torch.arange(len(columns[LABEL]))))


def seconds(test: Tensor) -> dict[str, float]:
    """For 64 maps to become structures, and backbones."""
    maps, turns = geometry.distances(test[:64]), geometry.chirality(test[:64])
    times: dict[str, list[float]] = {"recover_64_seconds": [], "backbone_64_seconds": []}
    for _ in range(3):
        began = time.perf_counter()
        ca = recover(maps, turns).ca
        times["recover_64_seconds"].append(time.perf_counter() - began)
        began = time.perf_counter()
        backbone.backbone(ca)
        times["backbone_64_seconds"].append(time.perf_counter() - began)
    return {name: float(np.mean(each)) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("AIGC_HOME", str(options.folder / "home"))
    where = options.folder / SOURCE
    facts = ingest(Proteins(), str(catalogue.fetch(SOURCE)), str(where), parallel=0)
    every = [
        record.once(options.folder / f"seed-{seed}.json", partial(one, where, seed, print))
        for seed in range(options.seeds)
    ]
    kept: dict[str, Any] = {
        arm: {
            key: record.mean([each[arm][key] for each in every if key in each[arm]])
            for key in every[0][arm]
        }
        for arm in every[0]
    }
    kept |= kept.pop("aigc")  # the figures that are asked for stand at the top
    model = Proteins(schema=data.schema())
    columns = rows.load(str(where), load_manifest(str(where)), "test", [TRACE])
    test = model.encode(columns, torch.arange(len(columns[TRACE]))).value[TRACE]
    kept["speed"] = seconds(test) | {"busy_before": round(record.busy(), 3)}
    kept["rows"] = {part: split["rows"] for part, split in facts["splits"].items()}
    kept["rejects"] = facts["rejects"]["count"]
    kept["duplicates"] = facts["duplicates"]
    path = record.save("proteins", kept, seeds=[*range(options.seeds)], command=COMMAND)
    print(json.dumps(str(path.name)))


if __name__ == "__main__":
    main()
