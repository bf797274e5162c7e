"""The smallest data and the smallest training that are still the real thing."""

from __future__ import annotations

from pathlib import Path

from aigc_ray.ingest import ingest
from aigc_ray.tasks.diagnosis import phantoms
from aigc_ray.tasks.diagnosis.task import Diagnosis

TINY = {
    "steps": 50,
    "batch_size": 16,
    "width": 0.125,
    "recogniser_width": 16,
    "precision": "fp32",
    "validate_every": 25,
    "transfer_steps": 2,
}


def ingested(folder: Path, *, train: int = 96, val: int = 32, size: int = 28) -> str:
    """A data set of phantoms in a folder; its URI."""
    phantoms.write(folder / "phantoms.npz", train=train, val=val, test=32, size=size)
    ingest(Diagnosis(), str(folder / "phantoms.npz"), str(folder / "data"))
    return str(folder / "data")
