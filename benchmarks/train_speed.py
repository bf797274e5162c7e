"""Is training through Ray as fast as a bare loop, and the step as fast as it can be?

`ratio_vs_torchrun`: images/s of `aigc_ray.train` over torchrun_loop.py, which takes the same step
on data in memory and does nothing else; the same batch, cores and workers, in alternation.
`step_speedup`: one worker's step over the straightforward PyTorch step of the same losses, with
what each improvement gave on the way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from aigc_ray import config, rows
from aigc_ray.adversary import Adversary
from aigc_ray.blocks import bf16_pays
from aigc_ray.tasks.diagnosis.task import Diagnosis
from aigc_ray.train import KEEP_MEMORY, configure
from benchmarks.plain_step import LADDER, PlainStep, batches
from benchmarks.record import save

WORKERS, BATCH, WARM_UP = 2, 64, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="URI of an ingested data set")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="train_speed", help="of the result: another machine's")
    options = parser.parse_args()
    pairs = []
    for number in range(options.pairs):
        order = (through_ray, by_torchrun) if number % 2 == 0 else (by_torchrun, through_ray)
        rate = {run: run(options.data, options.steps) for run in order}
        pairs.append((rate[through_ray], rate[by_torchrun]))
        print(f"pair {number + 1}: {pairs[-1][0]:.1f} and {pairs[-1][1]:.1f} images/s", flush=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    seconds = step_seconds(options.data, options.rounds)
    ladder = {
        name: {
            "ms": round(1000 * value, 1),
            "speedup": round(seconds["straightforward"] / value, 3),
        }
        for name, value in seconds.items()
    }
    metrics = {
        "ratio_vs_torchrun": summary(ratios),
        "images_per_second": summary([ours for ours, _ in pairs]),
        "torchrun_images_per_second": summary([theirs for _, theirs in pairs]),
        "step_speedup": ladder["the loop's step"]["speedup"],
        "steps": ladder,
        "workers": WORKERS,
        "batch_size": BATCH,
    }
    named = "" if options.name == "train_speed" else f" --name {options.name}"
    command = f"python -m benchmarks.train_speed DATA{named}"
    save(options.name, metrics, seeds=[0], command=command)


def summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),  # others may disturb a run or two
        "mean": round(statistics.mean(values), 4),
        "sd": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "n": len(values),
    }


def through_ray(data: str, steps: int) -> float:
    """Images/s of the steps after the warm-up, validation and checkpoints set aside."""
    with tempfile.TemporaryDirectory() as home:
        settings = [f"steps={steps}", f"validate_every={steps}", "checkpoint_every=100000"]
        settings += [f"batch_size={BATCH}", f"num_workers={WORKERS}"]
        command = [sys.executable, "-m", "benchmarks.train_once", data, str(WARM_UP), *settings]
        environment = {**_environment(), "AIGC_HOME": home}
        out = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    return float(json.loads(out.splitlines()[-1]))


def by_torchrun(data: str, steps: int) -> float:
    loop = str(Path(__file__).with_name("torchrun_loop.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(WORKERS), loop, data, str(steps), str(WARM_UP)]
    command += [f"steps={steps}", f"batch_size={BATCH}", f"num_workers={WORKERS}"]
    out = subprocess.run(
        command, env=_environment(), check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return float(json.loads(out.splitlines()[-1]))


def _environment() -> dict[str, str]:
    import os

    root = str(Path(__file__).parents[1])
    # The peer gets the allocator's settings too: the comparison is of the loops.
    return {**os.environ, **KEEP_MEMORY, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def step_seconds(data: str, rounds: int) -> dict[str, float]:
    """Median seconds of a worker's step on one core, the versions taking turns."""
    torch.set_num_threads(1)
    training, facts = configure("diagnosis", data, config.parse([f"batch_size={BATCH}"]))
    task = training.task
    columns = rows.load(data, facts, "train", [field.name for field in task.schema.fields])
    assert isinstance(task, Diagnosis)
    taken = batches(task, columns, BATCH // WORKERS, 8)
    strength = 0.3
    ladder = [(name, how) for name, how in LADDER if not how.bf16 or bf16_pays("cpu")]
    plain = {name: PlainStep(task, how) for name, how in ladder}
    ours = Adversary(task, seed=0)
    times: dict[str, list[float]] = {name: [] for name in [*plain, "the loop's step"]}
    for turn in range(rounds + 1):
        for name in times:
            began = time.perf_counter()
            for batch in taken[:4]:
                if name in plain:
                    plain[name].step(batch, strength)
                else:
                    ours.strength = strength
                    ours.step(batch)
            if turn:  # the first round warms up
                times[name].append((time.perf_counter() - began) / 4)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
