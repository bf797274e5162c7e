"""The order in which a training sees its rows, the same for any number of workers.

Sample number g of a run stands in step g // batch_size. Worker r of W holds the r-th part of each
step's samples. Which row sample g is depends only on the seed, so the order needs no cursor: a run
that is resumed asks for the step it wants.

A small set is held in memory and shuffled whole. A large one is streamed from its Parquet shards
by Ray Data: row groups are dealt to `LANES` lanes, each of which shuffles within a window of some
groups and fills its own places of every step; a worker reads only the lanes it holds.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from aigc_ray import storage
from aigc_ray.errors import UserError

SPREAD = 32  # row groups that a part of a split is taken from, at most
LANES = 16  # so the number of workers of a streamed run divides 16
WINDOW = 4  # row groups that a lane shuffles together
CHAPTER = 512  # windows of one Ray Data execution
READERS = 2  # tasks that read for one worker at a time
Rows = dict[str, np.ndarray]


class Share(NamedTuple):
    """A worker's place among the workers."""

    rank: int = 0
    workers: int = 1


class Feed(Protocol):
    """Where the loop gets its rows from."""

    def batches(self, start: int, share: Share) -> Iterator[tuple[np.ndarray, Rows]]:
        """From step `start` on, without end: sample numbers (B/W,) and their columns."""


class Memory:
    """A split held in memory, shuffled whole in each epoch."""

    def __init__(self, columns: Rows, *, batch_size: int, seed: int) -> None:
        self.columns, self.batch_size, self.seed = columns, batch_size, seed
        self.count = len(next(iter(columns.values())))
        self._epochs: dict[int, np.ndarray] = {}

    def batches(self, start: int, share: Share) -> Iterator[tuple[np.ndarray, Rows]]:
        places = _places(self.batch_size, share)
        step = start
        while True:
            number = step * self.batch_size + places
            rows, epochs = np.empty_like(number), number // self.count
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                rows[here] = self._epoch(epoch)[number[here] % self.count]
            yield number, {name: column[rows] for name, column in self.columns.items()}
            step += 1

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # a batch straddles two epochs at most where rows >= batch
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return self._epochs[epoch]


class Group(NamedTuple):
    """One row group of one Parquet shard."""

    path: str
    number: int
    rows: int


class Window(NamedTuple):
    """Row groups that a lane shuffles together, and where its rows begin in the lane."""

    lane: int
    start: int  # rows of the lane before it
    groups: tuple[Group, ...]
    seed: tuple[int, ...]


class Stream:
    """A split streamed from its shards by Ray Data, in bounded memory."""

    def __init__(
        self, uri: str, groups: list[Group], *, columns: list[str], batch_size: int, seed: int
    ) -> None:
        self.uri, self.groups, self.columns = uri, groups, columns
        self.batch_size, self.seed = batch_size, seed
        self.lanes = math.gcd(batch_size, LANES)
        if len(groups) < self.lanes:
            raise UserError(
                f"{uri} has {len(groups)} row groups, too few to stream in {self.lanes} lanes; "
                "set data=memory"
            )

    def batches(self, start: int, share: Share) -> Iterator[tuple[np.ndarray, Rows]]:
        if self.lanes % share.workers:
            raise UserError(
                f"num_workers={share.workers} does not divide the {self.lanes} lanes of a streamed "
                "set; use 1, 2, 4, 8 or 16 workers and a batch_size they divide, or data=memory"
            )
        held = self.lanes // share.workers
        lanes = range(share.rank * held, (share.rank + 1) * held)
        a_step = self.batch_size // self.lanes  # rows of a lane in a step
        places = _places(self.batch_size, share)
        waiting: dict[int, list[Rows]] = {lane: [] for lane in lanes}
        arriving = self._read(self._windows(lanes, start * a_step))
        step = start
        while True:
            parts = []
            for lane in lanes:
                while sum(map(_count, waiting[lane])) < a_step:
                    owner, rows = next(arriving)
                    waiting[owner].append(rows)
                whole = {
                    name: np.concatenate([rows[name] for rows in waiting[lane]])
                    for name in waiting[lane][0]
                }
                parts.append({name: column[:a_step] for name, column in whole.items()})
                waiting[lane] = [{name: column[a_step:] for name, column in whole.items()}]
            yield (
                step * self.batch_size + places,
                {name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
            )
            step += 1

    def _lane(self, lane: int) -> Iterator[Window]:
        """A lane's windows without end; each epoch deals the row groups anew."""
        start = epoch = 0
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.groups))
            dealt = [self.groups[i] for i in order[lane :: self.lanes]]
            for first in range(0, len(dealt), WINDOW):
                groups = tuple(dealt[first : first + WINDOW])
                yield Window(lane, start, groups, (self.seed, epoch, lane, first))
                start += sum(group.rows for group in groups)
            epoch += 1

    def _windows(self, lanes: range, skip: int) -> Iterator[tuple[Window, int]]:
        """The lanes' windows in the order they are needed, and how many rows of each to skip."""
        from heapq import merge

        def needed(lane: int) -> Iterator[Window]:
            for window in self._lane(lane):
                if window.start + sum(group.rows for group in window.groups) > skip:
                    yield window

        for window in merge(*map(needed, lanes), key=lambda window: window.start):
            yield window, max(0, skip - window.start)

    def _read(self, windows: Iterator[tuple[Window, int]]) -> Iterator[tuple[int, Rows]]:
        import ray
        from ray.data import DataContext, TaskPoolStrategy

        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        uri, columns = self.uri, self.columns

        def read(batch: dict[str, np.ndarray]) -> Any:
            return read_window(uri, columns, *json.loads(batch["item"][0]))

        while chapter := [json.dumps(window) for window in islice(windows, CHAPTER)]:
            items = ray.data.from_items(chapter, override_num_blocks=len(chapter))
            readers = TaskPoolStrategy(size=READERS)
            blocks = items.map_batches(read, batch_size=1, num_cpus=0.5, compute=readers)
            for rows in blocks.iter_batches(batch_size=None, prefetch_batches=2):
                lanes = rows.pop("lane")
                yield int(lanes[0]), rows


def read_window(
    uri: str, columns: list[str], window: tuple[Any, ...], skip: int
) -> dict[str, np.ndarray]:
    """The rows of one window, shuffled."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lane, _, groups, seed = Window(*window)
    tables = []
    for path, number, _ in groups:
        filesystem, root = storage.filesystem(storage.join(uri, path))
        with pq.ParquetFile(root, filesystem=filesystem) as file:
            tables.append(file.read_row_group(number, columns=columns))
    rows = numpy(pa.concat_tables(tables))
    order = np.random.default_rng(seed).permutation(_count(rows))[skip:]
    shuffled = {name: column[order] for name, column in rows.items()}
    return shuffled | {"lane": np.full(len(order), lane)}


def numpy(table: Any) -> Rows:
    """An Arrow table's columns as arrays; fixed sizes become (rows, size)."""
    import pyarrow as pa

    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        if pa.types.is_fixed_size_list(column.type):
            flat = column.flatten().to_numpy(zero_copy_only=False)
            columns[name] = flat.reshape(len(column), column.type.list_size)
        elif pa.types.is_fixed_size_binary(column.type):
            width, start = column.type.byte_width, column.offset * column.type.byte_width
            flat = np.frombuffer(column.buffers()[1], np.uint8)[start:]
            columns[name] = flat[: len(column) * width].reshape(len(column), width)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def load(uri: str, description: dict[str, Any], split: str, columns: list[str]) -> Rows:
    """A whole split in memory, in the order of its shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for shard in description["splits"][split]["shards"]:
        filesystem, root = storage.filesystem(storage.join(uri, shard["path"]))
        tables.append(pq.read_table(root, columns=columns, filesystem=filesystem))
    return numpy(pa.concat_tables(tables))


def scan(uri: str, description: dict[str, Any], split: str, columns: list[str]) -> Iterator[Rows]:
    """A split's row groups in order, one in memory at a time."""
    return (rows for _, rows in sampled(uri, description, split, columns))


def sampled(
    uri: str, description: dict[str, Any], split: str, columns: list[str], most: int | None = None
) -> Iterator[tuple[np.ndarray, Rows]]:
    """The same, each with the numbers of its rows in the split. Of more than `most` rows that many
    are taken, from all over the split, since the rows of a file may be sorted; and from no more
    groups than `SPREAD`, if that many hold them."""
    import pyarrow.parquet as pq

    every = groups(uri, description, split)
    if not every:
        return
    sizes = np.array([group.rows for group in every])
    starts, total = np.cumsum(sizes) - sizes, sizes.sum()
    chosen, taken = np.arange(len(every)), np.arange(total)  # groups, and rows of these
    if most is not None and most < total:
        count = min(len(every), max(math.ceil(most / total * len(every)), SPREAD))
        chosen = np.linspace(0, len(every) - 1, count).round().astype(int)
        there = int(sizes[chosen].sum())
        taken = np.linspace(0, there - 1, min(most, there)).round().astype(int)
    ends = np.cumsum(sizes[chosen])
    parts = np.split(taken, np.searchsorted(taken, ends[:-1]))
    inside = [part - end + size for part, end, size in zip(parts, ends, sizes[chosen], strict=True)]
    works = zip(chosen.tolist(), inside, strict=True)
    for path, same in groupby(works, lambda work: every[work[0]].path):
        filesystem, root = storage.filesystem(storage.join(uri, path))
        with pq.ParquetFile(root, filesystem=filesystem) as file:
            for place, part in same:
                if not len(part):
                    continue
                found = numpy(file.read_row_group(every[place].number, columns=columns))
                if len(part) < sizes[place]:
                    found = {name: column[part] for name, column in found.items()}
                yield starts[place] + part, found


def groups(uri: str, description: dict[str, Any], split: str) -> list[Group]:
    """The row groups of a split, from the shards' footers."""
    import pyarrow.parquet as pq

    found = []
    for shard in description["splits"][split]["shards"]:
        filesystem, root = storage.filesystem(storage.join(uri, shard["path"]))
        with pq.ParquetFile(root, filesystem=filesystem) as file:
            meta = file.metadata
            sizes = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
        found += [Group(shard["path"], number, rows) for number, rows in enumerate(sizes)]
    return found


def _places(batch_size: int, share: Share) -> np.ndarray:
    part = batch_size // share.workers
    return np.arange(share.rank * part, (share.rank + 1) * part)


def _count(rows: Rows) -> int:
    return len(next(iter(rows.values())))
