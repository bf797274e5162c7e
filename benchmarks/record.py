"""How a measurement is kept: benchmarks/results/NAME.json, from which the tables are printed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("numpy", "pillow", "pyarrow", "ray", "torch")


def save(name: str, metrics: dict[str, Any], *, seeds: list[int], command: str) -> Path:
    """Write a result with all that is needed to judge and to repeat it."""
    result = {
        "benchmark": name,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "seeds": seeds,
        "metrics": metrics,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    return path


def once(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part of a long measurement finds, or found before the measurement was interrupted:
    kept in a file, and taken up only by the commit that wrote it."""
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["commit"] == commit():
            return dict(kept["found"])
    found = work()
    path.write_text(json.dumps({"commit": commit(), "found": found}, indent=2) + "\n")
    return found


def commit() -> str:
    """The commit that was measured; `+changes` where the checkout differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return (git("rev-parse", "HEAD") or "none") + ("+changes" if changed else "")


def machine() -> dict[str, Any]:
    """What the figures depend on; neither the machine's name nor any path."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "cpu": _cpu(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not all need Ray
            found[name] = importlib.metadata.version(name)
    return found


class PeakMemory:
    """The most memory that this process and its children held at a time, sampled in a thread.

    Proportional set size without shared memory: pages that several processes map count once, and
    the object store's do not count, since how many of them were touched says more of its allocator
    than of the program. Add the store's whole size to `bytes`.
    """

    def __init__(self, every: float = 0.25) -> None:
        self.every, self.bytes = every, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            family = [me, *me.children(recursive=True)]
            self.bytes = max(self.bytes, sum(map(_private, family)))
            if self._stop.wait(self.every):
                return


def _private(process: psutil.Process) -> int:
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup")
        if rollup.exists():
            sizes = dict(line.split(":", 1) for line in rollup.read_text().splitlines()[1:])
            return 1024 * sum(int(sizes[key].split()[0]) for key in ("Pss_Anon", "Pss_File"))
        return int(process.memory_full_info().uss)
    except (psutil.Error, OSError, ValueError):
        return 0  # it has just ended


def cpu_seconds() -> float:
    """What this process and its living children have computed: steadier than time where others
    use the machine too."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of repeated measurements."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = (
        ordered[middle] if len(ordered) % 2 else math.fsum(ordered[middle - 1 : middle + 1]) / 2
    )
    return {"median": median, "min": ordered[0], "max": ordered[-1]}


def mean(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation of repeated measurements."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 4), "sd": round(sd, 4), "n": len(values)}


def busy(seconds: float = 1.0) -> float:
    """Share of the machine that others use right now: above .1 do not trust a measurement."""
    psutil.cpu_percent()
    time.sleep(seconds)
    return float(psutil.cpu_percent()) / 100
