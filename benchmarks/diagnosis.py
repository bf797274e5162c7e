"""How well images are recognised and generated, beside the same without the adversarial part.

    python -m benchmarks.diagnosis FOLDER [--seeds 5] [--sets SET ...]

Trains, for each set and seed, `aigc` (a whole training; `without_gan` is its recogniser alone, from
the same run) and `resnet18`, our own ResNet-18 of the same width and number of images by MedMNIST's
recipe (Adam 1e-3, a tenth at half and three quarters, no augmentation, the epoch with the best
validation AUC; Yang et al. 2023). Generated rows are compared with those of a Gaussian for each
class in the space of its principal components. Everything is chosen on validation rows; the test
split is looked at by the last line of each arm. Hours pass before all seeds are done, so each run
is kept in the result file, and the same command goes on from there (`--afresh` forgets them).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ray import assess, calibration, catalogue, fidelity, recognition, registry, rows
from aigc_ray.blocks import ResNet18, bf16_pays, low_precision
from aigc_ray.evaluate import TRANSFER_STEPS
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.judgement import Policy
from aigc_ray.model import Model
from aigc_ray.task import Networks
from aigc_ray.tasks.diagnosis.task import Diagnosis
from aigc_ray.train import examine, identity_of, measure, train
from aigc_ray.worker import split
from benchmarks import record

EPOCHS = {"pneumoniamnist": 30, "retinamnist": 90}  # of either arm; the second set is small
SETS = tuple(EPOCHS)
BATCH = 64
LEGAL = {"retinamnist": {"flip": True}}  # left and right eyes are mirror images; chests are not
KEPT = ("auc", "acc", "nll", "ece", "ece_floor", "aurc")
BEFORE = ("nll_uncalibrated", "brier", "brier_uncalibrated", "answered", "answered_acc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for data and models")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="instead of each set's own")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--classic", type=int, default=1, help="seeds of loss=classic")
    parser.add_argument("--afresh", action="store_true", help="forget the runs that are done")
    parser.add_argument("--try", dest="only_try", action="store_true", help="print, keep nothing")
    parser.add_argument(
        "--judge", action="store_true", help="judge the networks that are trained anew, no more"
    )
    options = parser.parse_args()
    os.environ["AIGC_HOME"] = str(options.folder.absolute() / "home")
    done = Runs(keep=not options.only_try)
    if not (options.afresh or options.only_try):
        done.read()
    jobs: dict[str, dict[str, Any]] = {}
    for name in options.sets:
        data = str(options.folder / name)
        ingest(Diagnosis(), str(catalogue.fetch(name)), data, parallel=0)
        jobs[name] = {"data": data, "description": load_manifest(data)}
    if options.judge:
        for one in done.every:
            if one["arm"] == "adversarial" and one["set"] in jobs:
                done.replace(one, judged_again(jobs[one["set"]], one))
        return
    plan: list[tuple[Any, int]] = [
        *((arm, seed) for seed in range(options.seeds) for arm in (adversarial, plain)),
        *((classic, seed) for seed in range(options.classic)),
    ]
    for arm, seed in plan:
        for name, job in jobs.items():
            images = job["description"]["splits"]["train"]["rows"]
            steps = (options.epochs or EPOCHS[name]) * images // BATCH
            if (name, arm.__name__, seed) not in done:
                done.add(name, arm.__name__, seed, steps, arm(name, job, steps, seed))


class Runs:
    """What is measured, run by run: the result file holds them beside their summary."""

    def __init__(self, *, keep: bool) -> None:
        self.keep, self.every = keep, list[dict[str, Any]]()

    def read(self) -> None:
        path = record.RESULTS / "diagnosis.json"
        if path.exists():
            self.every = json.loads(path.read_text())["metrics"]["runs"]

    def __contains__(self, run: tuple[str, str, int]) -> bool:
        return any((one["set"], one["arm"], one["seed"]) == run for one in self.every)

    def add(
        self, name: str, arm: str, seed: int, steps: int, found: Mapping[str, dict[str, Any]]
    ) -> None:
        about = {"set": name, "arm": arm, "seed": seed, "steps": steps, "commit": record.commit()}
        self.every.append({**about, "figures": found})
        self._write(self.every[-1])

    def replace(self, one: dict[str, Any], found: Mapping[str, dict[str, Any]]) -> None:
        one["figures"] = {name: one["figures"][name] | new for name, new in found.items()} | {
            name: old for name, old in one["figures"].items() if name not in found
        }
        one["judged"] = record.commit()
        self._write(one)

    def _write(self, one: dict[str, Any]) -> None:
        print(json.dumps(one), file=sys.stderr, flush=True)
        if self.keep:
            seeds = sorted({one["seed"] for one in self.every})
            command = "python -m benchmarks.diagnosis FOLDER"
            record.save("diagnosis", self.summary(), seeds=seeds, command=command)

    def summary(self) -> dict[str, Any]:
        """Mean and standard deviation over the seeds, and the differences seed by seed."""
        found: dict[str, Any] = {}
        for name in sorted({one["set"] for one in self.every}):
            arms: dict[str, dict[int, dict[str, float]]] = {}
            for one in self.every:
                for key, figures in one["figures"].items() if one["set"] == name else ():
                    arms.setdefault(key, {})[one["seed"]] = figures
            found[name] = {key: _summary(list(every.values())) for key, every in arms.items()}
            found[name]["paired"] = _paired(arms)
            found[name]["steps"] = next(one["steps"] for one in self.every if one["set"] == name)
        return found | {"runs": self.every}


# --- the arms ---------------------------------------------------------------------------------


def adversarial(name: str, job: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """The whole training, and the same judged without the critic."""
    model = _trained(name, job, steps, seed, {})
    gaussian = _sampler(model, job)
    theirs = _near(gaussian, job, "test") | _near(gaussian, job, "val")
    ours = _generation(model, job)
    found = _recognition(model, job)
    return {"aigc": found["aigc"] | ours, "without_gan": found["without_gan"], "gaussian": theirs}


def judged_again(job: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """A seed's trained networks, from the registry, as they are admitted and judged by now."""
    newest = (
        Model.open(registry.fetch(f"diagnosis:{found['version']}")) for found in registry.models()
    )
    model = next(
        found
        for found in newest
        if found.info["seeds"] == [one["seed"]]
        and found.info["data"]["sha256"] == identity_of(job["description"])
        and found.info["configuration"]["loss"] == Diagnosis.loss
    )
    heard = model.info["generated_rows"]["heard"]
    if heard:
        _exchange(model)
    assess.admit(model, job)
    assess.judge(model, job, Policy())
    measure(model, job, ["test"])
    if heard == model.info["generated_rows"]["heard"]:
        return _recognition(model, job)
    examine(model, job, "test", TRANSFER_STEPS)  # its feature space is another
    ours = _generation(model, job)
    found = _recognition(model, job)
    return found | {"aigc": found["aigc"] | ours}


def _generation(model: Model, job: Mapping[str, Any]) -> dict[str, float]:
    generation = model.info["generation"]
    found = _distances(generation) | {"tstr_over_trtr": generation["tstr_over_trtr"]}
    found |= {key: generation[key]["value"] for key in ("nn_auc", "copy_rate", "plain_copy_rate")}
    holds = generation["nn_auc"]["low"] <= 0.5 <= generation["nn_auc"]["high"]
    return found | {"nn_auc_holds_half": float(holds)} | _near(model, job, "val")


def _recognition(model: Model, job: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, and what learned from real rows alone without the critic's opinion; the model is
    no longer itself afterwards."""
    found = model.info["metrics"]["test"]
    ours = {key: found[key] for key in (*KEPT, *BEFORE)}
    ours["critic_share"] = model.info["calibration"]["share"]
    ours["temperature"] = model.info["calibration"]["temperature"]
    ours |= _best(model, job)
    gain = model.info["calibration"]["gain_elsewhere"]
    ours["critic_gain_elsewhere"] = gain["value"]
    ours["generated_rows_heard"] = float(model.info["generated_rows"]["heard"])
    if model.info["generated_rows"]["heard"]:
        _exchange(model)
    assess.judge(model, job, Policy(), share=0.0)
    alone = assess.told(model, job, "test")["metrics"]
    return {"aigc": ours, "without_gan": {key: alone[key] for key in (*KEPT, *BEFORE)}}


def _best(model: Model, job: Mapping[str, Any]) -> dict[str, float]:
    """What the test split itself would have asked for: to understand an error, never to choose."""
    prediction, value, known = fidelity.collected(model, split(job, model.task, "test"))
    right = known["label"]
    answer, label = prediction["probability"][right].astype(float), value["label"][right]
    answer /= answer.sum(1, keepdims=True)
    more = calibration.temperature(answer, label)
    return {
        "best_temperature": more * model.info["calibration"]["temperature"],
        "best_ece": calibration.ece(calibration.apply(answer, more), label),
    }


def _exchange(model: Model) -> None:
    for member in model.members:
        member["recogniser"], member["beside"] = member["beside"], member["recogniser"]


def classic(name: str, job: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """The founding text's loss, all else equal."""
    model = _trained(name, job, steps, seed, {"loss": "classic"})
    generation = model.info["generation"]
    found = {key: model.info["metrics"]["test"][key] for key in KEPT}
    found |= _distances(generation) | {"tstr_over_trtr": generation["tstr_over_trtr"]}
    return {"classic": found | _near(model, job, "val")}


def _trained(
    name: str, job: Mapping[str, Any], steps: int, seed: int, more: dict[str, Any]
) -> Model:
    settings = {"num_workers": 2, "steps": steps, "seed": seed, "batch_size": BATCH}
    settings |= {"validate_every": 250}
    summary = train("diagnosis", job["data"], settings | LEGAL.get(name, {}) | more)
    return Model.open(registry.fetch(summary["model"]))


def plain(name: str, job: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """ResNet-18 as MedMNIST trains it, as wide as ours and for as many images."""
    torch.manual_seed(seed)
    task = replace(Diagnosis(), schema=_schema(job))
    channels, size, _ = task.schema["image"].shape
    network = ResNet18(channels, len(task.classes), width=task.recogniser_width, size=size)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    columns = {part: _columns(job, part) for part in ("train", "val", "test")}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    milestones = [steps // 2, steps * 3 // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    random, pixels = np.random.default_rng(seed), columns["train"][0]
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})
    order = np.empty(0, int)
    for step in range(steps):
        if len(order) < BATCH:
            order = random.permutation(len(pixels))
        chosen, order = torch.from_numpy(order[:BATCH]), order[BATCH:]
        network.train()
        image = pixels[chosen].contiguous(memory_format=torch.channels_last)
        with low_precision(bf16_pays("cpu"), image.device):
            logits = network(image)
        loss = F.cross_entropy(logits.float(), columns["train"][1][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if len(order) < BATCH or step == steps - 1:
            auc = recognition.figures(*_likely(network, columns["val"]))["auc"]
            if auc > best[0]:
                best = auc, {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(best[1])
    probability, label = _likely(network, columns["test"])
    found = recognition.figures(probability, label) | recognition.honesty(probability, label)
    return {"resnet18": {key: found[key] for key in KEPT}}


def _schema(job: Mapping[str, Any]) -> Any:
    from aigc_ray.schema import Schema

    return Schema.from_json(job["description"]["schema"])


def _columns(job: Mapping[str, Any], part: str) -> tuple[Tensor, Tensor]:
    task = replace(Diagnosis(), schema=_schema(job))
    found = rows.load(job["data"], job["description"], part, ["image", "label"])
    batch = task.encode(found, torch.zeros(len(found["label"])))
    return batch.value["image"], batch.value["label"]


@torch.inference_mode()
def _likely(network: nn.Module, columns: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    network.eval()
    parts = [network(part).softmax(1) for part in columns[0].split(256)]
    return torch.cat(parts).numpy(), columns[1].numpy()


# --- a generator without an adversary -----------------------------------------------------------


class Gaussian(nn.Module):
    """Samples of a normal distribution for each class, fitted to the training rows' pixels."""

    def __init__(self, image: Tensor, label: Tensor) -> None:
        super().__init__()
        self.shape = image.shape[1:]
        self.parts = []
        for k in range(int(label.max()) + 1):
            flat = image[label == k].flatten(1)
            mean = flat.mean(0)
            _, spread, axes = torch.linalg.svd(flat - mean, full_matrices=False)
            self.parts.append((mean, spread / len(flat) ** 0.5, axes))

    def forward(self, noise: Tensor, label: Tensor, known: Tensor) -> Tensor:
        images = torch.empty(len(label), *self.shape)
        for row, k in enumerate(label.tolist()):
            mean, spread, axes = self.parts[k]
            key = int(noise[row, 0].abs() * 1e9)
            draw = torch.randn(len(spread), generator=torch.Generator().manual_seed(key))
            images[row] = (mean + (draw * spread) @ axes).view(self.shape)
        return images.clamp(-1, 1)


def _sampler(model: Model, job: Mapping[str, Any]) -> Model:
    """The model with such a generator in the place of its own."""
    networks = Networks(dict(model.members[0].items()))
    networks["generator"] = Gaussian(*_columns(job, "train"))
    return Model(model.task, [networks], {})


def _near(model: Model, job: Mapping[str, Any], part: str) -> dict[str, float]:
    """How like a split generated rows are. The validation split is of the training rows' kind;
    the test split may be of another, and then what is like it is not like what was learned."""
    parts = {name: list(split(job, model.task, name)) for name in ("train", "val", part)}
    found = fidelity.fidelity(model, parts["train"], parts["val"], parts[part])
    suffix = "" if part == "test" else f"_{part}"
    return {f"{key}{suffix}": value for key, value in _distances(found).items()}


def _distances(found: Mapping[str, Any]) -> dict[str, float]:
    plain = ("kid_ratio", "precision", "recall", "density", "coverage", "coverage_real")
    nested = {key: found[key]["value"] for key in ("kid", "kid_real")}
    return {key: found[key] for key in plain} | nested


# --- many seeds ---------------------------------------------------------------------------------


def _summary(every: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    shared = [key for key in every[0] if all(key in one for one in every)]
    return {key: record.mean([one[key] for one in every]) for key in shared}


def _paired(arms: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, Any]:
    """Ours minus another arm's, seed by seed, with the p-value of a paired t-test."""
    from scipy.stats import ttest_rel

    found: dict[str, Any] = {}
    for other in ("without_gan", "resnet18"):
        seeds = sorted(set(arms.get("aigc", ())) & set(arms.get(other, ())))
        for key in ("auc", "acc", "nll", "aurc") if seeds else ():
            ours, theirs = ([arms[arm][seed][key] for seed in seeds] for arm in ("aigc", other))
            gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
            p = float(ttest_rel(ours, theirs).pvalue) if len(gaps) > 1 and any(gaps) else None
            found[f"{key}_over_{other}"] = {**record.mean(gaps), "p": p}
    return found


if __name__ == "__main__":
    main()
