"""Simulated patients whose true survival is known."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

THERAPIES = ("none", "old", "new")


class Cohort(NamedTuple):
    """Patients, when they die and when they are lost from sight, in years."""

    age: np.ndarray
    marker: np.ndarray  # does nothing
    therapy: np.ndarray  # index of THERAPIES
    grade: np.ndarray  # 0, 1, 2: the higher, the sooner
    death: np.ndarray
    lost: np.ndarray

    @property
    def rate(self) -> np.ndarray:
        """Deaths a year: constant, so a patient's survival at t is exp(−rate · t)."""
        return rate(self.age, self.therapy, self.grade)

    @property
    def time(self) -> np.ndarray:
        return np.minimum(self.death, self.lost)

    @property
    def event(self) -> np.ndarray:
        return self.death <= self.lost


def rate(age: np.ndarray, therapy: np.ndarray, grade: np.ndarray) -> np.ndarray:
    return 0.25 * np.exp((age - 60) / 15 - 0.8 * (therapy == 2) + 0.5 * (grade - 1))


def made(count: int, seed: int = 0) -> Cohort:
    random = np.random.default_rng(seed)
    age = random.normal(60, 12, count).round(1)
    therapy, grade = random.integers(0, 3, count), random.integers(0, 3, count)
    death = random.exponential(1 / rate(age, therapy, grade))
    return Cohort(
        age, random.normal(size=count), therapy, grade, death, random.exponential(6, count)
    )


def write(path: Path, count: int, seed: int = 0, missing: float = 0.05) -> Cohort:
    """A table of them; some ages are not known."""
    found = made(count, seed)
    unknown = np.random.default_rng(seed + 1).random(count) < missing
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["age", "marker", "therapy", "grade", "time", "event"])
        for row in range(count):
            table.writerow(
                [
                    "NA" if unknown[row] else found.age[row],
                    f"{found.marker[row]:.4f}",
                    THERAPIES[found.therapy[row]],
                    found.grade[row],
                    f"{found.time[row]:.5f}",
                    int(found.event[row]),
                ]
            )
    return found
