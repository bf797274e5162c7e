"""The order of the rows: every row once an epoch, the same for any number of workers."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from aigc_ray import rows
from aigc_ray.errors import UserError
from aigc_ray.rows import Group, Memory, Share, Stream

ALONE = Share()


def taken(feed, steps, share=ALONE, start=0):
    return list(islice(feed.batches(start, share), steps))


@pytest.fixture
def memory():
    return Memory({"id": np.arange(20)}, batch_size=8, seed=3)


def test_each_epoch_holds_every_row_once_and_in_another_order(memory):
    ids = np.concatenate([columns["id"] for _, columns in taken(memory, 10)])
    first, second = ids[:20], ids[20:40]
    assert sorted(first) == sorted(second) == list(range(20))
    assert list(first) != list(second)


def test_workers_hold_parts_of_the_same_steps(memory):
    whole = taken(memory, 6)
    parts = [taken(memory, 6, Share(rank, 4)) for rank in range(4)]
    for step in range(6):
        for place in (0, 1):  # sample numbers, then columns
            joined = [part[step][place] for part in parts]
            if place:
                joined = [columns["id"] for columns in joined]
                assert list(np.concatenate(joined)) == list(whole[step][1]["id"])
            else:
                assert list(np.concatenate(joined)) == list(whole[step][0])


def test_a_resumed_run_goes_on_where_it_was(memory):
    later = taken(memory, 3, start=5)
    for (number, columns), (wanted, wanted_columns) in zip(
        later, taken(memory, 8)[5:], strict=True
    ):
        assert list(number) == list(wanted)
        assert list(columns["id"]) == list(wanted_columns["id"])


# --- streaming, with the reading replaced by what each window would hold -------------------------


class Counted(Stream):
    """A stream whose rows are (group, place in the group), made instead of read."""

    def _read(self, windows):
        for window, skip in windows:
            ids = np.concatenate([1000 * int(g.path) + np.arange(g.rows) for g in window.groups])
            order = np.random.default_rng(window.seed).permutation(len(ids))[skip:]
            self.read_rows = getattr(self, "read_rows", 0) + len(order)
            yield window.lane, {"id": ids[order]}


@pytest.fixture
def stream():
    groups = [Group(str(number), 0, 30 + number % 3) for number in range(164)]
    return Counted("", groups, columns=["id"], batch_size=32, seed=3)


def test_streamed_workers_hold_parts_of_the_same_steps(stream):
    whole = taken(stream, 50)
    parts = [taken(stream, 50, Share(rank, 4)) for rank in range(4)]
    for step in range(50):
        joined = np.concatenate([part[step][1]["id"] for part in parts])
        assert list(joined) == list(whole[step][1]["id"])
        assert list(np.concatenate([part[step][0] for part in parts])) == list(whole[step][0])


def test_a_stream_taken_up_again_goes_on_where_it_was(stream):
    whole, later = taken(stream, 60), taken(stream, 13, start=47)
    for (_, columns), (_, wanted) in zip(later, whole[47:], strict=True):
        assert list(columns["id"]) == list(wanted["id"])


def test_a_streamed_epoch_holds_every_row_about_once(stream):
    total = sum(group.rows for group in stream.groups)
    ids = np.concatenate([columns["id"] for _, columns in taken(stream, total // 32)])
    _, counts = np.unique(ids, return_counts=True)
    assert counts.max() <= 2 and len(counts) > 0.9 * total


def test_a_worker_reads_its_own_lanes_only(stream):
    taken(stream, 30, Share(1, 8))
    assert stream.read_rows < 30 * 32 / 8 * 2.5  # its eighth, and windows begun


def test_streaming_refuses_workers_that_do_not_share_the_lanes(stream):
    with pytest.raises(UserError, match="num_workers=3 does not divide the 16 lanes"):
        taken(stream, 1, Share(0, 3))
    with pytest.raises(UserError, match="2 row groups, too few to stream in 16 lanes"):
        Stream("there", stream.groups[:2], columns=["id"], batch_size=32, seed=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A split of 400 rows in row groups of 20."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("shards")
    table = pa.table({"id": np.arange(400), "label": pa.array(np.arange(400) % 7, pa.int32())})
    pq.write_table(table, folder / "part.parquet", row_group_size=20)
    shard = {"path": "part.parquet", "rows": 400, "bytes": 1}
    return str(folder), {"splits": {"train": {"rows": 400, "shards": [shard]}}}


def test_ray_data_streams_what_the_plan_says(shards, ray):
    uri, facts = shards
    groups = rows.groups(uri, facts, "train")
    assert [group.rows for group in groups] == [20] * 20
    stream = Stream(uri, groups, columns=["id", "label"], batch_size=8, seed=1)
    seen = taken(stream, 45)
    again = taken(stream, 5, start=40)
    for (_, columns), (_, wanted) in zip(again, seen[40:], strict=True):
        assert list(columns["id"]) == list(wanted["id"])
    ids = np.concatenate([columns["id"] for _, columns in seen])
    labels = np.concatenate([columns["label"] for _, columns in seen])
    assert len(np.unique(ids)) > 330 and np.array_equal(ids % 7, labels)


def test_a_part_of_a_split_comes_from_all_over_it(shards, monkeypatch):
    uri, facts = shards
    for most in (1, 7, 100, 399, 400, 1000):
        found = [*rows.sampled(uri, facts, "train", ["id"], most)]
        ids = np.concatenate([part["id"] for _, part in found])
        assert list(ids) == list(np.concatenate([numbers for numbers, _ in found]))
        assert len(np.unique(ids)) == min(most, 400)
        assert most == 1 or np.diff(ids).max() <= max(1, 2 * 400 // most)
    monkeypatch.setattr(rows, "SPREAD", 4)
    found = [*rows.sampled(uri, facts, "train", ["id"], 10)]
    assert [int(numbers[0]) // 20 for numbers, _ in found] == [0, 6, 13, 19]
    assert sum(len(numbers) for numbers, _ in found) == 10
    whole = np.concatenate([part["id"] for part in rows.scan(uri, facts, "train", ["id"])])
    assert list(whole) == list(range(400))
