"""What a GPU makes of a training: the same losses as on the CPU, and how many rows a second.

    python -m benchmarks.gpu_speed DATA… [--steps N]

Each DATA is an ingested data set. A training in one process, without Ray, on all cores of the CPU
and then on the GPU: `rows_per_second` of the steps after the first quarter, validation and
checkpoints set aside; `difference` is how far the losses of the first quarter are apart, by their
size.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch

from aigc_ray import lease
from aigc_ray.ingest import load_manifest
from aigc_ray.train import configure, job_of
from aigc_ray.worker import work
from benchmarks.record import save

# Of each task: what takes up the least time that still tells, and how many rows are in a step.
SETTINGS: dict[str, dict[str, Any]] = {
    "diagnosis": {"batch_size": 64, "precision": "fp32"},
    "prognosis": {"batch_size": 256},
    "molecules": {"batch_size": 512, "precision": "fp32", "adversarial_steps": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="URIs of ingested data sets, one a task")
    parser.add_argument("--steps", type=int, default=40, help="of each stage that a task counts so")
    parser.add_argument("--name", default="gpu_speed", help="of the result")
    options = parser.parse_args()
    metrics: dict[str, Any] = {"gpu": torch.cuda.get_device_name()}
    for data in options.data:
        task = load_manifest(data)["task"]
        settings = SETTINGS[task] | {"steps": options.steps}
        settings["validate_every"] = max(1, options.steps // 4)
        cpu, gpu = (trained(task, data, settings, gpu=gpu) for gpu in (False, True))
        first = [run[0] for run in (cpu, gpu)]
        apart = {
            name: abs(first[0][name] - first[1][name]) / max(abs(first[0][name]), 1e-6)
            for name in first[0]
            if name in ("generator", "critic", "recogniser")
        }
        rates = {name: rate(run) for name, run in (("cpu", cpu), ("gpu", gpu))}
        metrics[task] = {
            "rows_per_second": rates, "ratio": round(rates["gpu"] / rates["cpu"], 2),
            "difference": {name: float(f"{value:.2g}") for name, value in apart.items()},
        }  # fmt: skip
        print(task, metrics[task], flush=True)
    save(options.name, metrics, seeds=[0], command="python -m benchmarks.gpu_speed DATA…")


def trained(task: str, data: str, settings: dict[str, Any], *, gpu: bool) -> list[dict[str, Any]]:
    """What a training told of itself after each validation."""
    changes = settings | {"num_workers": 0, "gpu": gpu}
    training, facts = configure(task, data, changes)
    with tempfile.TemporaryDirectory(prefix="aigc-") as folder, lease.held(folder) as held:
        told: list[dict[str, Any]] = []
        work(job_of(training, facts, data, folder) | {"lease": held}, told.append)
        return told


def rate(told: list[dict[str, Any]]) -> float:
    """Rows a second between two validations, without what was done beside the steps."""
    first, last = told[0], told[-1]
    seconds = (last["elapsed"] - last["aside"]) - (first["elapsed"] - first["aside"])
    rows = last["rows_per_second"] * last["elapsed"] * (1 - first["step"] / last["step"])
    return round(rows / max(seconds, 1e-9), 1)
