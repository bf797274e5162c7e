"""From a source to a data set: read in parallel, checked, split, and written as Parquet shards.

One pass, in memory that does not grow with the data but for a hash a row. The pieces of work are
ordered test, val, train, those without a split last, so of equal rows in different splits the one
met first is the one that is kept. Below DEST are written

    {train,val,test}/part-00000.parquet …   rows, in the order of the source
    rejects.parquet                         what was set aside, and why
    manifest.json                           last: without it there is no data set

A task says in each piece of work what it knows beforehand: its `split`, its number of `rows`, and
whether the data are `synthetic`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aigc_ray import cluster, config, storage
from aigc_ray.errors import UserError
from aigc_ray.shards import Shards, arrow_type, table, travelling
from aigc_ray.splitter import SPLITS, Splitter, hash64
from aigc_ray.task import Record, Reject, Source, Task

__all__ = ["arrow_type", "ingest", "load_manifest"]

TASK_ROWS = 256  # that one Ray task reads, at least; and that a piece of unknown length has
TASK_BYTES = 48 << 20  # that it reads at most: starting one costs tens of milliseconds
TASKS = 4  # a core, at least: the cores should end together
BLOCK_BYTES = 8 << 20  # of the blocks that travel from the readers to the writer
REASONS = 20  # different reasons that the manifest names
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
REJECTS = pa.schema([("source", pa.string()), ("reason", pa.string())])


def ingest(
    task: Task,
    source: str,
    dest: str,
    *,
    seed: int = 0,
    shard_bytes: int = 128 << 20,
    max_reject_fraction: float = 0.05,
    parallel: int | None = None,
) -> dict[str, Any]:
    """Make a data set of a source; the same call on a finished one does nothing.

    Args:
        seed: assigns rows to splits where the source does not.
        shard_bytes: of a Parquet file, about.
        max_reject_fraction: more bad rows than this are an error.
        parallel: readers at a time; None takes all cores, 0 reads in this process without Ray,
            which is quicker for a small set since Ray needs ten seconds to start.

    Returns:
        The manifest.

    Raises:
        UserError: source or destination are wrong, or the data cannot be learned from.
    """
    source, dest = _absolute(source), _absolute(dest)
    task, pieces = task.survey(source)
    pieces.sort(key=_priority)
    facts = {"task": task.name, "schema": task.schema.to_json(), "pieces": pieces, "seed": seed}
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if storage.exists(storage.join(dest, "manifest.json")):
        manifest = load_manifest(dest)
        if manifest["identity"] == identity:
            return manifest
        raise UserError(
            f"{dest} already holds other data (from {manifest['source']}, or with other settings);"
            " name another destination or delete it"
        )
    _clear(dest)
    shards = {split: Shards(dest, split, task.schema, shard_bytes) for split in SPLITS}
    work = _Writer(dest, shards, Splitter(seed, unique=task.unique), max_reject_fraction, pieces)
    with _undone(shards, dest):
        if parallel == 0:
            for part in _tables(_listed(pieces), task):
                work.add(part)
        else:
            with cluster.session(parallel), _told():
                for part in _read(task, pieces, parallel):
                    work.add(part)
        work.finish()
    manifest = {
        "task": task.name,
        "configuration": config.to_json(task),
        "schema": task.schema.to_json(),
        "source": source,
        "seed": seed,
        "identity": identity,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "synthetic": any(bool(piece.get("synthetic")) for piece in pieces),
        "splits": {split: shards[split].describe() for split in reversed(SPLITS)},
    } | work.describe()
    storage.write_json(storage.join(dest, "manifest.json"), manifest)
    return manifest


def load_manifest(uri: str) -> dict[str, Any]:
    """What is known of a data set."""
    try:
        manifest = storage.read_json(storage.join(uri, "manifest.json"))
    except storage.Missing:
        raise UserError(
            f"{uri} is no data set (it has no manifest.json); make one with "
            f"`aigc-ray ingest TASK SOURCE {uri}`"
        ) from None
    if not isinstance(manifest, dict) or not {"task", "schema", "splits"} <= manifest.keys():
        raise UserError(f"{uri}/manifest.json is not that of a data set")
    return manifest


def _absolute(uri: str) -> str:
    """Workers have other working folders."""
    return str(storage.local(uri) or uri.rstrip("/"))


def _priority(piece: Source) -> int:
    split = piece.get("split")
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _clear(dest: str) -> None:
    """Delete what an ingestion that did not finish left behind, and nothing else."""
    for name in storage.files(dest):
        folder, _, file = name.rpartition("/")
        if folder in SPLITS and file.startswith("part-") and file.endswith(".parquet"):
            storage.delete(storage.join(dest, name))
        elif folder.split("/")[0] in SPLITS:
            raise UserError(f"{dest} holds {name}, which is not ours; name an empty destination")


@contextmanager
def _undone(shards: dict[str, Shards], dest: str) -> Iterator[None]:
    """After an error no file stays open; one that the user can mend is told in a sentence."""
    try:
        yield
    except BaseException as error:
        for part in shards.values():
            part.abandon()
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise UserError(f"{dest} cannot be written: {os.strerror(error.errno)}") from error
        raise


# --- reading --------------------------------------------------------------------------------------


def _read(task: Task, pieces: list[Source], parallel: int | None) -> Iterator[pa.Table]:
    """The rows of all pieces in their order, read by Ray Data in parallel."""
    import ray.data
    from ray.data import TaskPoolStrategy

    rows = sum(piece.get("rows", TASK_ROWS) for piece in pieces)
    even = min(math.ceil(rows / TASK_ROWS), TASKS * (parallel or cluster.cpus()))
    wanted = max(math.ceil(rows * _width(task) / TASK_BYTES), even)
    blocks = max(1, min(len(pieces), wanted))
    with _context():
        items = ray.data.from_items(_listed(pieces).to_pylist(), override_num_blocks=blocks)
        parts = items.map_batches(
            partial(_tables, task=task),
            batch_size=None,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=parallel),
        )
        yield from parts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _width(task: Task) -> int:
    """Bytes of a row, about."""
    return max(1, sum(math.prod(f.shape) for f in task.schema.fields if f.kind != "text"))


def _listed(pieces: list[Source]) -> pa.Table:
    return pa.table({"piece": [json.dumps(piece) for piece in pieces]})


@contextmanager
def _context() -> Iterator[None]:
    """Ray Data's settings, which are global to the process, as we need them."""
    from ray.data import DataContext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray warns of its own defaults
        context, logger = DataContext.get_current(), logging.getLogger("ray.data")
        ours = context.copy()
    ours.execution_options.preserve_order = True
    ours.enable_progress_bars = False
    ours.target_max_block_size = BLOCK_BYTES
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what goes wrong is raised, and told once
    DataContext._set_current(ours)
    try:
        yield
    finally:
        DataContext._set_current(context)
        logger.setLevel(level)


def _tables(pieces: pa.Table, task: Task) -> Iterator[pa.Table]:
    """Runs in a worker: the rows of some pieces of work, a few megabytes at a time."""
    found: list[Record | Reject] = []
    most = max(1, min(TASK_ROWS, BLOCK_BYTES // _width(task)))  # Ray then passes it on uncopied
    for text in pieces["piece"].to_pylist():
        for record in task.read(json.loads(text)):
            found.append(record)
            if len(found) == most:
                yield table(found, task.schema)
                found = []
    if found:
        yield table(found, task.schema)
    elif not len(pieces):
        yield travelling(task.schema).empty_table()


@contextmanager
def _told() -> Iterator[None]:
    """A worker's UserError, taken out of what Ray wraps it in."""
    try:
        yield
    except Exception as error:
        inner: BaseException | None = error
        while inner is not None:
            cause = getattr(inner, "cause", None)  # Ray's own wrapper is a UserError too
            if isinstance(inner, UserError) and cause is None:
                break
            inner = cause or inner.__cause__
        if inner is None or inner is error:
            raise
        raise UserError(str(inner).partition("\n")[0]) from None  # Ray adds lines of advice


# --- writing --------------------------------------------------------------------------------------


class _Writer:
    """Takes the rows as they arrive, and knows what the manifest will say of them."""

    def __init__(
        self,
        dest: str,
        shards: dict[str, Shards],
        splitter: Splitter,
        max_reject_fraction: float,
        pieces: list[Source],
    ) -> None:
        self.dest, self.shards, self.splitter = dest, shards, splitter
        self.max_reject_fraction = max_reject_fraction
        known = all("rows" in piece for piece in pieces)
        self.total = sum(piece["rows"] for piece in pieces) if known else None
        self.rejects: list[pa.Table] = []
        self.persons: dict[int, str] = {}  # by a hash, since they are not ours to keep
        self.flags: Counter[str] = Counter()
        self.rejected = self.rows = 0
        self.progress = _Progress(self.total)

    def add(self, part: pa.Table) -> None:
        good = part["reason"].is_null()
        if part["reason"].null_count < len(part):
            self.rejects.append(part.filter(pc.invert(good)).select(REJECTS.names))
            part = part.filter(good)
            self.rejected += len(self.rejects[-1])
            if self.total and self.rejected > self.max_reject_fraction * self.total:
                self._refuse()  # no need to read the rest
        part, people = self._named(part)
        marks = part["split"].to_pylist(), people, part["content"].to_pylist()
        placed = [self.splitter.place(*mark) for mark in zip(*marks, strict=True)]
        flags = zip(part["flag"].to_pylist(), placed, strict=True)
        self.flags.update(flag for flag, where in flags if flag and where)
        for split in {where for where in placed if where is not None}:
            chosen = part  # as it lies in the object store, where all rows are of one split
            if placed.count(split) < len(placed):
                chosen = part.filter(pa.array([where == split for where in placed]))
            self.shards[split].add(chosen)
        self.rows += len(part)
        self.progress.show(self.rows + self.rejected)

    def _named(self, part: pa.Table) -> tuple[pa.Table, list[str | None]]:
        """The rows with pseudonyms for whoever a header names, and by whom they shall be split.

        The pseudonyms are numbers in the order of appearance: from a hash of a patient's number
        that number could be guessed. The split hangs on the person, so it stays when files come in.
        """
        patients, persons = part["patient"].to_pylist(), part["person"].to_pylist()
        if part["person"].null_count == len(part):
            return part, patients
        for place, person in enumerate(persons):
            if person is not None:
                number = len(self.persons) + 1
                patients[place] = self.persons.setdefault(hash64(person), f"dicom-{number:06d}")
            else:
                persons[place] = patients[place]
        at = part.schema.get_field_index("patient")
        return part.set_column(at, "patient", pa.array(patients, pa.string())), persons

    def finish(self) -> None:
        self.progress.show(self.rows + self.rejected, last=True)
        if self.rejected > self.max_reject_fraction * (self.rows + self.rejected):
            self._refuse()
        self._write_rejects()
        for split, shards in self.shards.items():
            shards.close()
            if not shards.rows:
                raise UserError(
                    f"the {split} split is empty; a data set needs rows in train, val and test"
                )
            facts = shards.describe()["classes"]
            present = [name for name, count in facts.items() if count]
            if facts and len(present) < 2:
                only = f"only {present[0]}" if present else "no class"
                raise UserError(f"the {split} split has {only}; at least two classes are needed")

    def _write_rejects(self) -> str:
        where, file = storage.join(self.dest, "rejects.parquet"), io.BytesIO()
        pq.write_table(pa.concat_tables([REJECTS.empty_table(), *self.rejects]), file)
        storage.write_bytes(where, file.getvalue())
        return where

    def _refuse(self) -> None:
        where = self._write_rejects()
        reason, count = self._reasons().most_common(1)[0]
        raise UserError(
            f"{self.rejected} of {self.rows + self.rejected} rows read were set aside, more than "
            f"max_reject_fraction={self.max_reject_fraction:g}; {count} because: {reason} "
            f"(all are listed in {where})"
        )

    def _reasons(self) -> Counter[str]:
        return Counter(reason for part in self.rejects for reason in part["reason"].to_pylist())

    def describe(self) -> dict[str, Any]:
        """The entries of the manifest that tell what was left out."""
        splitter = self.splitter
        return {
            "rejects": {
                "count": self.rejected,
                "reasons": dict(self._reasons().most_common(REASONS)),
            },
            "duplicates": {
                "across": dict(sorted(splitter.across.items())),
                "within": {split: splitter.within[split] for split in reversed(SPLITS)},
            },
            "patients": {
                "known": len(splitter.patients),
                "in_several_splits": len(splitter.torn),
                "rows_left_out": dict(sorted(splitter.patient_rows.items())),
            },
            "flags": dict(sorted(self.flags.items())),
        }


class _Progress:
    """A line on stderr every few seconds: how far, how fast, how long still."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.first: tuple[float, int] | None = None  # when the first rows came, and how many
        self.next = 0.0

    def show(self, done: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if self.first is None:  # the seconds in which Ray starts are no measure of the rate
            self.first, self.next = (now, done), now + 2.0
        if now < self.next and not last:
            return
        self.next = now + 2.0
        rate = (done - self.first[1]) / max(now - self.first[0], 1e-9)
        line = f"ingest: {done}{f'/{self.total}' if self.total else ''} rows"
        if rate:
            line += f", {rate:.0f}/s"
        if rate and self.total and not last:
            left = max(0, round((self.total - done) / rate))
            line += f", {left // 60}:{left % 60:02d} left"
        terminal = sys.stderr.isatty()
        end = "\n" if last or not terminal else ""
        print(f"\r{line}\033[K" if terminal else line, end=end, file=sys.stderr, flush=True)
