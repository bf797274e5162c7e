"""The loop to be compared with: torchrun, data in memory, and nothing beside the steps.

Started by train_speed.py as `torchrun … torchrun_loop.py DATA STEPS WARM_UP key=value …`; prints
the images a second of rank 0 after the warm-up.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist

from aigc_ray import config, noise, rows
from aigc_ray.adversary import HELD_BACK_EVERY, Adversary
from aigc_ray.train import configure


def main() -> None:
    data, steps, warm_up, *settings = sys.argv[1:]
    training, facts = configure("diagnosis", data, config.parse(settings))
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    task = training.task
    columns = [field.name for field in task.schema.fields]
    train, val = (rows.load(data, facts, part, columns) for part in ("train", "val"))
    adversary = Adversary(task, seed=training.seed)
    part = training.batch_size // world
    random = np.random.default_rng(0)
    began = 0.0
    for step in range(int(steps)):
        if step == int(warm_up):
            dist.barrier()
            began = time.perf_counter()
        batches = []
        for split in (train, val):
            chosen = random.integers(len(split["image"]), size=training.batch_size)
            chosen = chosen[rank * part : (rank + 1) * part]
            number = torch.arange(part) + step * training.batch_size + rank * part
            taken = {name: column[chosen] for name, column in split.items()}
            batches.append(task.encode(taken, noise.keys(0, number)))
            if step % HELD_BACK_EVERY:
                break
        adversary.step(*batches)
    seconds = time.perf_counter() - began
    if rank == 0:
        rate = (int(steps) - int(warm_up)) * training.batch_size / seconds
        print(json.dumps(rate), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads outlive the group and may abort an interpreter that shuts down


if __name__ == "__main__":
    main()
