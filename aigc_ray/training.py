"""The settings of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aigc_ray.errors import UserError
from aigc_ray.judgement import Policy
from aigc_ray.task import Task


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a task is trained; the task's own settings are under `task.`."""

    task: Task
    num_workers: int = 1  # data-parallel workers; 0 trains in this process, without Ray
    gpu: bool = False  # one GPU a worker, NCCL; else CPU, gloo
    batch_size: int = 64  # rows in a step over all workers
    seed: int = 0
    data: Literal["auto", "memory", "stream"] = "auto"
    init: str | None = None  # a MODEL to start from
    validate_every: int | None = None  # steps; None: a twentieth of each stage
    checkpoint_every: int = 500  # steps
    checkpoint_seconds: float = 120.0
    max_failures: int = 3  # worker crashes that a run survives
    members: int = 1  # networks trained one after the other, whose opinions are averaged
    transfer_steps: int = 300  # in which a recogniser learns from generated rows alone; 0 skips it
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise UserError(f"batch_size is at least 2; got {self.batch_size}")
        if self.validate_every is not None and self.validate_every < 1:
            raise UserError(f"validate_every is at least 1; got {self.validate_every}")
        if self.num_workers < 0:
            raise UserError(f"num_workers is 0 or more; got {self.num_workers}")
        if self.members < 1:
            raise UserError(f"members is at least 1; got {self.members}")
        if self.transfer_steps < 0:
            raise UserError(f"transfer_steps is 0 or more; got {self.transfer_steps}")
        if self.num_workers and self.batch_size % self.num_workers:
            raise UserError(
                f"batch_size={self.batch_size} is not a multiple of num_workers={self.num_workers}"
            )
