"""How much faster `ingest` is than one process that reads the same images, and how much memory.

    python -m benchmarks.ingest_speed [--pairs 3] [--images 20000]

Grey PNG files of 256 x 256, chest-like phantoms, in 200 folders of a temporary directory. Plain is
`Diagnosis.read` over all of them in this process, with the result thrown away; `ingest` reads,
checks, splits, hashes and writes the data set. The two take turns, with `ingest(parallel=0)`, which
does all of it in one process, as the third (`speedup_same_work`). `speedup` is from the source to
the manifest within a Ray that runs and has read something before, `speedup_with_start` in a new
process from its first line on (imports and Ray's start included; plain: its imports too).
`peak_memory_*`: see `record.PeakMemory`, plus the object store's whole size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import record

SIZE = 256
SMALL = 5000


def make(folder: Path, images: int, seed: int = 0) -> None:
    """PNG files with labels.csv; noise as in a film, so that they compress like one."""
    import csv

    import numpy as np
    from PIL import Image

    from aigc_ray.tasks.diagnosis import phantoms

    random = np.random.default_rng(seed)
    base = phantoms.draw(np.arange(100) % 2, SIZE, random)
    rows = [("path", "label", "split")]
    for number in range(images):
        noise = random.integers(-2, 3, (SIZE, SIZE), dtype=np.int16)  # no two are equal
        array = np.clip(base[number % 100] + noise, 0, 255).astype(np.uint8)
        path = folder / f"{number // 100:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, compress_level=6)
        split = ("test", "test", "val", *["train"] * 7)[number // 2 % 10]
        rows.append((str(path.relative_to(folder)), phantoms.CLASSES[number % 2], split))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def plain(source: str) -> dict[str, Any]:
    """One process, one image after the other."""
    from aigc_ray.tasks.diagnosis.task import Diagnosis

    began = time.perf_counter()
    task, pieces = Diagnosis(size=SIZE).survey(source)
    count = sum(1 for piece in pieces for _ in task.read(piece))
    return {"images": count, "seconds": time.perf_counter() - began}


def ingested(source: str, dest: str, parallel: int | None = None) -> dict[str, Any]:
    from aigc_ray.ingest import ingest
    from aigc_ray.tasks.diagnosis.task import Diagnosis

    began = time.perf_counter()
    manifest = ingest(Diagnosis(size=SIZE), source, dest, parallel=parallel)
    seconds = time.perf_counter() - began
    shutil.rmtree(dest)  # twelve of them would fill a small disk
    return {"images": sum(s["rows"] for s in manifest["splits"].values()), "seconds": seconds}


def alone(what: str, source: str, dest: str) -> dict[str, Any]:
    """`what` in a new process: its own figures, and the seconds from start to end."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "benchmarks.ingest_speed", "--run", what, source, dest]
    done = subprocess.run(words, cwd=record.ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout) | {"with_start": time.perf_counter() - began}


def run(what: str, source: str, dest: str) -> dict[str, Any]:
    """What a new process does."""
    from aigc_ray import cluster

    if what == "plain":
        return plain(source)
    if what == "start":
        return ingested(source, dest)
    with record.PeakMemory() as memory:
        figures = ingested(source, dest)
    return figures | {"peak_memory": memory.bytes + cluster.STORE_BYTES}


def measure(images: int, pairs: int, folder: Path) -> dict[str, Any]:
    from aigc_ray import cluster

    large, small, tiny = (folder / name for name in ("large", "small", "tiny"))
    for path, count in ((large, images), (small, SMALL), (tiny, 600)):
        if not (path / "labels.csv").exists():
            make(path, count)
    plains, ingests, ratios, same_work, starts = [], [], [], [], []
    work: list[list[float]] = []  # CPU microseconds an image, plain and ingest
    others = [record.busy()]
    with cluster.session():
        ingested(str(tiny), str(folder / "warm"))  # the workers' imports
        plain(str(tiny))
        for pair in range(pairs):
            marks = [record.cpu_seconds()]
            reader = plain(str(large))
            marks.append(record.cpu_seconds())
            writer = ingested(str(large), str(folder / f"out-{pair}"))
            marks.append(record.cpu_seconds())
            work.append([(after - before) / images * 1e6 for before, after in pairwise(marks)])
            assert reader["images"] == writer["images"] == images, (reader, writer)
            same = ingested(str(large), str(folder / f"same-{pair}"), parallel=0)
            same_work.append(same["seconds"] / writer["seconds"])
            plains.append(images / reader["seconds"])
            ingests.append(images / writer["seconds"])
            ratios.append(ingests[-1] / plains[-1])
            others.append(record.busy())
            print(f"pair {pair}: {plains[-1]:.0f} and {ingests[-1]:.0f}/s", file=sys.stderr)
    for pair in range(pairs):
        reader = alone("plain", str(large), "-")
        writer = alone("start", str(large), str(folder / f"start-{pair}"))
        starts.append(reader["with_start"] / writer["with_start"])
        print(f"with start: {starts[-1]:.2f}", file=sys.stderr)
    few = alone("memory", str(small), str(folder / "m-small"))["peak_memory"]
    many = alone("memory", str(large), str(folder / "m-large"))["peak_memory"]
    return {
        "images": images,
        "image_size": SIZE,
        "pairs": pairs,
        "images_per_second": record.spread(ingests)["median"],
        "plain_images_per_second": record.spread(plains)["median"],
        "speedup": record.spread(ratios)["median"],
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
        "speedup_same_work": record.spread(same_work)["median"],
        "speedup_with_start": record.spread(starts)["median"],
        "plain_cpu_microseconds": record.spread([pair[0] for pair in work])["median"],
        "cpu_microseconds": record.spread([pair[1] for pair in work])["median"],
        "cores_busy_with_others": max(others),
        f"peak_memory_{SMALL}": few,
        f"peak_memory_{images}": many,
        "memory_ratio": many / few,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="made images are kept here and used again")
    parser.add_argument("--try", dest="only_try", action="store_true", help="print, keep nothing")
    parser.add_argument("--run", nargs=3, metavar=("WHAT", "SOURCE", "DEST"))
    arguments = parser.parse_args()
    # Ray's workers are nice by default: on a machine that others use too they would get less of
    # it than the plain process. On a quiet one this changes nothing.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if arguments.run:
        print(json.dumps(run(*arguments.run)))
        return
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        where = arguments.folder or Path(folder)
        metrics = measure(arguments.images, arguments.pairs, where)
    metrics = {k: round(v, 4) if isinstance(v, float) else v for k, v in metrics.items()}
    print(json.dumps(metrics, indent=2))
    if not arguments.only_try:
        command = f"python -m benchmarks.ingest_speed --pairs {arguments.pairs}"
        record.save("ingest_speed", metrics, seeds=[0], command=command)


if __name__ == "__main__":
    main()
