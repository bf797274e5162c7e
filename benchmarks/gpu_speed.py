"""What a GPU makes of a training: the same losses as on the CPU, and how many rows a second.

    python -m benchmarks.gpu_speed DATA… [--steps N]

Each DATA is an ingested data set. A training in one process, without Ray, on all cores of the CPU
and then on the GPU: `rows_per_second` of the steps after the first quarter, validation and
checkpoints set aside; `difference` is how far the losses of the first quarter are apart, by their
size, with float32 on both.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch

from aigc_ray import lease, storage
from aigc_ray.ingest import load_manifest
from aigc_ray.train import configure, job_of
from aigc_ray.worker import work
from benchmarks.record import save

# Of each task: how many rows are in a step, and what makes both machines compute the same.
SETTINGS: dict[str, dict[str, Any]] = {
    "diagnosis": {"batch_size": 64, "precision": "fp32"},
    "prognosis": {"batch_size": 256},
    "dna": {"batch_size": 64, "precision": "fp32"},
    "proteins": {"batch_size": 64, "precision": "fp32"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="URIs of ingested data sets")
    parser.add_argument("--steps", type=int, default=80)
    options = parser.parse_args()
    sets: dict[str, Any] = {}
    for data in options.data:
        name, task = storage.name(data), load_manifest(data)["task"]
        settings = SETTINGS[task] | {"steps": options.steps}
        settings["validate_every"] = max(1, options.steps // 4)
        runs = {device: trained(task, data, settings, device) for device in ("cpu", "cuda")}
        rates = {device: rate(run) for device, run in runs.items()}
        first = {device: run[0] for device, run in runs.items()}
        apart = {
            player: abs(first["cpu"][player] - first["cuda"][player])
            / max(abs(first["cpu"][player]), 1e-6)
            for player in ("generator", "critic", "recogniser")
            if player in first["cpu"]
        }
        sets[name] = {
            "task": task,
            "batch_size": settings["batch_size"],
            "rows_per_second": rates,
            "ratio": round(rates["cuda"] / rates["cpu"], 2),
            "difference": {player: float(f"{value:.2g}") for player, value in apart.items()},
        }
        print(name, sets[name], flush=True)
        metrics = {"gpu": torch.cuda.get_device_name(), "steps": options.steps, "sets": sets}
        save("gpu_speed", metrics, seeds=[0], command="python -m benchmarks.gpu_speed DATA…")


def trained(task: str, data: str, settings: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """What a training told of itself after each validation."""
    changes = settings | {"num_workers": 0, "gpu": device == "cuda"}
    training, facts = configure(task, data, changes)
    with tempfile.TemporaryDirectory(prefix="aigc-") as folder, lease.held(folder) as held:
        told: list[dict[str, Any]] = []
        work(job_of(training, facts, data, folder) | {"lease": held}, told.append)
        return told


def rate(told: list[dict[str, Any]]) -> float:
    """Rows a second between the first validation and the last, without what was done beside the
    steps."""
    first, last = told[0], told[-1]
    seconds = (last["elapsed"] - last["aside"]) - (first["elapsed"] - first["aside"])
    rows = last["rows_per_second"] * last["elapsed"] * (1 - first["step"] / last["step"])
    return round(rows / max(seconds, 1e-9), 1)


if __name__ == "__main__":
    main()
