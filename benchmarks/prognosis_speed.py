"""How long a member takes to fit beside DeepSurv, and a thousand patients to be answered.

    python -m benchmarks.prognosis_speed FOLDER [--pairs 5]

`fit_seconds`: of one member's training on SUPPORT, by the settings of benchmarks/prognosis.py, from
reading the rows to the last checkpoint, its validations included, with the critic and without;
`fit_ratio`: over those of pycox's DeepSurv on the same rows, in alternation; both in one process
with two threads, after a first fit of each that is not counted (libraries are loaded then).
`chosen_step`: the moment that held-back rows chose. `predict_seconds`: one request of 1,000
patients to /v1/prognosis/predict over HTTP, from the first byte sent to the last read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aigc_ray import serving
from aigc_ray.train import train
from benchmarks import prognosis, record

PORT = 8019
PATIENTS, REQUESTS = 1000, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for data and models")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    os.environ["AIGC_HOME"] = str(options.folder.absolute() / "home")
    warnings.simplefilter("ignore")  # of the peer
    patients = prognosis.support()
    train_rows, test = next(prognosis.folds(patients.event))
    data = prognosis.ingested(patients, train_rows, test, options.folder / "speed")
    x = prognosis.numbers(patients.columns, train_rows)
    known = x[train_rows], patients.time[train_rows], patients.event[train_rows]
    fits: dict[str, list[dict[str, Any]]] = {arm: [] for arm in prognosis.OURS}
    theirs: list[float] = []
    for seed in range(-1, options.pairs):
        settings = prognosis.SETTINGS | prognosis.sized(len(train_rows)) | {"seed": max(seed, 0)}
        for arm, more in prognosis.OURS.items():
            summary = train("prognosis", data, settings | more, register=False, fresh=True)
            fits[arm].append(summary["training"] | {"model": f"{summary['uri']}/model"})
        torch.set_num_threads(2)
        began = time.monotonic()
        prognosis.deepsurv(*known, x[test])
        theirs.append(time.monotonic() - began)
        print(f"DeepSurv: {theirs[-1]:.1f} s", file=sys.stderr)
        if seed < 0:
            theirs.clear()
            fits = {arm: [] for arm in prognosis.OURS}
    ours, alone = ([one["seconds"] for one in every] for every in fits.values())
    metrics = {
        "fit_seconds": record.mean(ours),
        "fit_seconds_without_critic": record.mean(alone),
        "chosen_step": record.mean([one["chosen_at_step"] for one in fits["aigc"]]),
        "deepsurv_seconds": record.mean(theirs),
        "fit_ratio": record.mean([a / b for a, b in zip(ours, theirs, strict=True)]),
        "fit_ratio_without_critic": record.mean(
            [a / b for a, b in zip(alone, theirs, strict=True)]
        ),
        "predict_seconds": record.spread(answered(fits["aigc"][-1]["model"], patients, test)),
        "patients": PATIENTS,
    }
    seeds = list(range(options.pairs))
    command = "python -m benchmarks.prognosis_speed FOLDER"
    record.save("prognosis_speed", metrics, seeds=seeds, command=command)


def answered(model: str, patients: prognosis.Patients, rows: np.ndarray) -> list[float]:
    """Seconds of each request, the first two left out."""
    items = json.loads(patients.columns.iloc[rows[:PATIENTS]].to_json(orient="records"))
    horizons = [float(one) for one in np.quantile(patients.time, [0.25, 0.5, 0.75])]
    body = json.dumps({"items": items, "horizons": horizons}).encode()
    stop = serving.run({"prognosis": model}, port=PORT, block=False)
    try:
        return [_seconds(body) for _ in range(REQUESTS)][2:]
    finally:
        stop()


def _seconds(body: bytes) -> float:
    request: Any = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/prognosis/predict", body, {"Content-Type": "application/json"}
    )
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=60) as response:
        found = json.loads(response.read())
    seconds = time.monotonic() - began
    assert len(found["items"]) == PATIENTS
    return seconds


if __name__ == "__main__":
    main()
