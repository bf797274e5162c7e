"""Activities told by the recogniser beside a random forest, on splits by scaffold.

    python -m benchmarks.activities FOLDER [--sets SET ...] [--seeds N]

Five sets of MoleculeNet (Wu et al. 2018). A seed divides the scaffolds anew and begins the
training; recogniser and forest learn from the same molecules and are tested on the same others.
The forest (500 trees) reads Morgan fingerprints of 2,048 bits and radius 2; of several activities
there is one for each. Validation molecules choose the recogniser's moment and calibrate it; the
forest has no use for them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit.Chem import rdFingerprintGenerator
from scipy import stats
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from aigc_ray import assess, catalogue, noise, registry, rows
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.model import Model
from aigc_ray.schema import Schema
from aigc_ray.tasks.molecules import chemistry, data, metrics
from aigc_ray.tasks.molecules.task import Molecules
from aigc_ray.train import train
from benchmarks import record

COMMAND = "python -m benchmarks.activities FOLDER"
SETS: dict[str, tuple[str, ...] | None] = {  # their activities; None: all columns that hold numbers
    "bbbp": ("p_np",),
    "bace": ("Class",),
    "tox21": None,
    "esol": ("solubility:logp",),
    "lipophilicity": ("lipo",),
}
SEEDS = 3
BITS, TREES = 2048, 500
SETTINGS = {"num_workers": 0, "steps": 0, "adversarial_steps": 0, "batch_size": 64}
TOLD = ("auc", "brier", "ece", "rmse", "mae", "covered")


def ours(where: Path, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of the test split, and what was fitted to the validation split."""
    settings = {**SETTINGS, "seed": seed}
    summary = train("molecules", str(where), settings, register=False, fresh=True)
    model = Model.open(registry.fetch(f"{summary['uri']}/model"))
    job = {"data": str(where), "description": load_manifest(str(where))}
    test = assess.told(model, job, "test")["metrics"]
    return {name: test[name] for name in TOLD if name in test}, model.info["calibration"]


def forest(where: Path, seed: int) -> dict[str, float]:
    """The same figures of a forest for each activity."""
    facts = load_manifest(str(where))
    schema = Schema.from_json(facts["schema"])
    fields = data.activities(schema)
    parts = (_part(where, facts, schema, name) for name in ("train", "test"))
    bits, value, known = zip(*parts, strict=True)
    told = np.zeros((len(bits[1]), len(fields)))
    for place, field in enumerate(fields):
        there = known[0][field.name]
        kind = RandomForestClassifier if field.kind == "yes_no" else RandomForestRegressor
        trees = kind(TREES, random_state=seed, n_jobs=-1)
        trees.fit(bits[0][there], value[0][field.name][there])
        if field.kind == "yes_no":
            told[:, place] = trees.predict_proba(bits[1])[:, list(trees.classes_).index(1)]
        else:
            told[:, place] = trees.predict(bits[1])
    prediction = {"activity": told, "margin": np.zeros_like(told)}
    found = metrics.activities(prediction, value[1], known[1], fields)
    return {name: found[name] for name in TOLD if np.isfinite(found.get(name, np.nan))}


def _part(
    where: Path, facts: dict[str, Any], schema: Schema, part: str
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Fingerprints (N, BITS) of a split, and its activities: values, and where they are known."""
    names = [field.name for field in data.activities(schema)]
    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=BITS)
    bits, value, known = [], [], []
    for columns in rows.scan(str(where), facts, part, [data.CODES, *names]):
        batch = data.encode(columns, noise.keys(0, torch.arange(len(columns[names[0]]))), schema)
        for text in data.smiles_of(batch.value[data.CODES]):
            bits.append(morgan.GetFingerprintAsNumPy(chemistry.read(text)))
        value.append({name: batch.value[name].numpy() for name in names})
        known.append({name: batch.known[name].numpy() for name in names})
    joined = [
        {name: np.concatenate([one[name] for one in many]) for name in names}
        for many in (value, known)
    ]
    return np.stack(bits), joined[0], joined[1]


def compared(name: str, folder: Path, seeds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """A set's figures, of both, as mean and spread over seeds, and their difference by pairs."""
    task = Molecules(activities=SETS[name], split="scaffold")
    found: dict[str, list[dict[str, float]]] = {"aigc": [], "forest": []}
    fitted: list[dict[str, Any]] = []
    counts = {}
    for seed in range(seeds):
        where = folder / f"{name}-{seed}"
        facts = ingest(task, str(catalogue.fetch(name)), str(where), seed=seed, parallel=0)
        counts = {part: split["rows"] for part, split in facts["splits"].items()}
        one, calibration = ours(where, seed)
        found["aigc"].append(one)
        fitted.append(calibration)
        found["forest"].append(forest(where, seed))
        say(f"{name} {seed}: {one} forest {found['forest'][-1]}")
    measure, sign = ("auc", 1) if "auc" in found["aigc"][0] else ("rmse", -1)
    pairs = zip(found["aigc"], found["forest"], strict=True)
    gain = [sign * (one[measure] - other[measure]) for one, other in pairs]
    told: dict[str, Any] = {
        arm: {key: record.mean([one[key] for one in each]) for key in each[0]}
        for arm, each in found.items()
    }
    return told | {
        "measure": measure,
        "better_by": record.mean(gain),
        "p": float(stats.ttest_1samp(gain, 0).pvalue) if seeds > 1 else None,
        "rows": counts,
        "calibration": fitted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=[*SETS], default=[*SETS])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("AIGC_HOME", str(options.folder / "home"))
    path = record.RESULTS / "activities.json"
    kept: dict[str, Any] = json.loads(path.read_text())["metrics"] if path.exists() else {}
    for name in options.sets:
        kept[name] = compared(name, options.folder, options.seeds, print)
        record.save("activities", kept, seeds=[*range(options.seeds)], command=COMMAND)


if __name__ == "__main__":
    main()
