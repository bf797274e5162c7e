"""From sources to data sets, through Ray."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aigc_ray import cluster, rows, storage
from aigc_ray.errors import UserError
from aigc_ray.ingest import arrow_type, ingest, load_manifest
from aigc_ray.schema import Field, Schema
from aigc_ray.splitter import Splitter
from aigc_ray.task import Reject
from aigc_ray.tasks.diagnosis import phantoms
from aigc_ray.tasks.diagnosis.task import Diagnosis
from tests.toys import Toy

TASK = Diagnosis(size=28, channels=1)


@pytest.fixture(scope="module", autouse=True)
def session(s3):
    """One Ray for all; after the store's variables are set, since workers inherit them."""
    with cluster.session(2):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantoms") / "phantoms.npz"
    phantoms.write(path, train=300, val=20, test=30)
    return str(path)


def picture(number):
    array = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def folder(path, table, header=("path", "label", "split", "patient")):
    """A folder with labels.csv; the file called 7.png is always the same image."""
    for name in {row[0] for row in table}:
        number = int(Path(name).stem.rstrip("abc"))
        storage.write_bytes(storage.join(str(path), name), picture(number))
    text = io.StringIO()
    csv.writer(text).writerows([header, *table])
    storage.write_bytes(storage.join(str(path), "labels.csv"), text.getvalue().encode())
    return str(path)


def plain(count, start=0, split=("train", "val", "test")):
    """Rows that are all well: two classes in every split."""
    return [(f"{start + i}.png", "ab"[i // 3 % 2], split[i % len(split)], "") for i in range(count)]


def written(dest, manifest, split):
    shards = manifest["splits"][split]["shards"]
    return [row for shard in shards for row in read(storage.join(dest, shard["path"])).to_pylist()]


def read(uri):
    system, path = storage.filesystem(uri)
    return pq.read_table(path, filesystem=system)


# --- what is written ------------------------------------------------------------------------------


def test_a_data_set_holds_the_source_in_its_order(source, tmp_path):
    dest = str(tmp_path / "set")
    manifest = ingest(TASK, source, dest)
    assert manifest == load_manifest(dest) and manifest["synthetic"]
    assert manifest["task"] == "diagnosis" and manifest["configuration"]["size"] == 28
    assert Schema.from_json(manifest["schema"])["label"].values == phantoms.CLASSES
    with np.load(source) as whole:
        for split in ("train", "val", "test"):
            columns = rows.load(dest, manifest, split, ["row", "image", "label"])
            images = whole[f"{split}_images"]
            assert np.array_equal(columns["image"], images.reshape(len(images), -1))
            assert np.array_equal(columns["label"], whole[f"{split}_labels"][:, 0])
            assert np.array_equal(columns["row"], np.arange(len(images)))
            facts = manifest["splits"][split]
            assert facts["rows"] == len(images) == sum(facts["classes"].values())
            for shard in facts["shards"]:
                data = storage.read_bytes(storage.join(dest, shard["path"]))
                assert shard["bytes"] == len(data)
                assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    assert read(storage.join(dest, "rejects.parquet")).num_rows == 0


def test_the_same_call_again_does_nothing_and_another_is_refused(source, tmp_path):
    dest = str(tmp_path / "set")
    first = ingest(TASK, source, dest)
    assert ingest(TASK, source, dest) == first
    with pytest.raises(UserError, match="already holds other data"):
        ingest(TASK, source, dest, seed=1)
    with pytest.raises(UserError, match="already holds other data"):
        ingest(Diagnosis(size=32), source, dest)


def test_shards_are_rolled_and_the_same_for_any_number_of_readers(source, tmp_path):
    one = ingest(TASK, source, str(tmp_path / "one"), parallel=1, shard_bytes=100_000)
    two = ingest(TASK, source, str(tmp_path / "two"), parallel=2, shard_bytes=100_000)
    here = ingest(TASK, source, str(tmp_path / "here"), parallel=0, shard_bytes=100_000)
    assert one["splits"] == two["splits"] == here["splits"]
    shards = one["splits"]["train"]["shards"]
    assert [shard["path"] for shard in shards] == [
        "train/part-00000.parquet",
        "train/part-00001.parquet",
    ]
    assert [shard["rows"] for shard in shards] == [256, 44]
    assert [row["row"] for row in written(str(tmp_path / "one"), one, "train")] == list(range(300))


def test_in_a_bucket(s3, tmp_path):
    source = folder(storage.join(s3, "hospital"), plain(12))
    dest = storage.join(s3, "sets/hospital")
    manifest = ingest(TASK, source, dest)
    assert load_manifest(dest) == manifest
    assert [facts["rows"] for facts in manifest["splits"].values()] == [4, 4, 4]
    assert written(dest, manifest, "test")[0]["source"] == "2.png"
    with pytest.raises(UserError, match="the bucket nowhere does not exist"):
        ingest(TASK, source, "s3://nowhere/set")


def test_what_is_unknown_and_what_else_the_table_says_is_kept(tmp_path):
    table = [(*row, "63") for row in plain(12)]
    table[0] = ("0.png", "", "train", "p 1", "70")
    source = folder(tmp_path / "in", table, ("path", "label", "split", "patient", "age"))
    manifest = ingest(TASK, source, str(tmp_path / "out"))
    first = written(str(tmp_path / "out"), manifest, "train")[0]
    assert first["label"] == -1 and first["patient"] == "p 1" and first["extra"] == '{"age": "70"}'
    assert manifest["splits"]["train"]["classes"] == {"a": 1, "b": 2}


# --- splits ---------------------------------------------------------------------------------------


def test_a_duplicate_is_kept_in_the_split_that_judges(tmp_path):
    table = plain(12)
    table += [("2a.png", "a", "train", ""), ("1a.png", "a", "train", "")]  # as test, as val
    table += [("2b.png", "a", "val", ""), ("0a.png", "a", "train", "")]  # as test, as train
    table += [("5a.png", "a", "", "")]  # as test, without a split: joins it
    source, dest = folder(tmp_path / "in", table), str(tmp_path / "out")
    manifest = ingest(TASK, source, dest)
    assert manifest["duplicates"] == {
        "across": {"train/test": 1, "train/val": 1, "val/test": 1},
        "within": {"train": 1, "val": 0, "test": 1},
    }
    kept = {split: written(dest, manifest, split) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in kept.items()} == {"train": 5, "val": 4, "test": 5}
    seen = {split: {row["image"] for row in found} for split, found in kept.items()}
    assert (
        not seen["train"] & seen["val"] | seen["train"] & seen["test"] | seen["val"] & seen["test"]
    )


def test_a_patient_stays_in_one_split(tmp_path):
    table = plain(12)
    table += [
        (f"{20 + i}.png", "a", split, "P") for i, split in enumerate(("train", "val", "test"))
    ]
    table += [("23.png", "b", "", "P")]  # without a split: joins the others
    source, dest = folder(tmp_path / "in", table), str(tmp_path / "out")
    manifest = ingest(TASK, source, dest)
    left_out = {"train/test": 1, "val/test": 1}
    assert manifest["patients"] == {"known": 1, "in_several_splits": 1, "rows_left_out": left_out}
    of_p = [row["source"] for row in written(dest, manifest, "test") if row["patient"] == "P"]
    assert of_p == ["22.png", "23.png"]


def test_rows_without_a_split_are_dealt_by_patient_and_seed():
    def dealt(seed):
        splitter = Splitter(seed)
        return [splitter.place(None, f"p{i // 4}", i) for i in range(4000)]

    first = dealt(0)
    assert dealt(0) == first != dealt(1)
    assert all(len(set(first[i : i + 4])) == 1 for i in range(0, 4000, 4))
    share = {split: count / 4000 for split, count in Counter(first).items()}
    assert share == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.04)


def test_equal_rows_of_different_patients_never_cross_splits():
    splitter = Splitter(0)
    patients = [f"p{i}" for i in range(20)]
    placed = [splitter.place(None, patient, 1) for patient in patients]
    assert len(set(placed) - {None}) == 1
    again = [splitter.place(None, patient, 100 + i) for i, patient in enumerate(patients)]
    assert all(before in (None, after) for before, after in zip(placed, again, strict=True))
    assert sum(splitter.across.values()) == placed.count(None) > 0


# --- bad input ------------------------------------------------------------------------------------


def test_a_few_bad_images_are_set_aside(tmp_path):
    table = plain(60)
    source = folder(tmp_path / "in", table)
    (tmp_path / "in" / "3.png").write_bytes(b"a letter")
    (tmp_path / "in" / "4.png").unlink()
    dest = str(tmp_path / "out")
    manifest = ingest(TASK, source, dest)
    unreadable = "the file is not a PNG, JPEG, TIFF or DICOM image"
    reasons = {unreadable: 1, "the file is missing": 1}
    assert manifest["rejects"] == {"count": 2, "reasons": reasons}
    rejects = read(storage.join(dest, "rejects.parquet")).to_pylist()
    assert {"source": "3.png", "reason": unreadable} in rejects and len(rejects) == 2
    assert sum(facts["rows"] for facts in manifest["splits"].values()) == 58


def test_too_many_bad_images_stop_it_and_say_why(tmp_path):
    source, dest = folder(tmp_path / "in", plain(12)), tmp_path / "out"
    for number in (3, 4):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"a letter")
    with pytest.raises(UserError, match=r"2 of \d+ rows .* not a PNG.*rejects\.parquet"):
        ingest(TASK, source, str(dest))
    assert read(str(dest / "rejects.parquet")).num_rows == 2
    assert not (dest / "manifest.json").exists()
    manifest = ingest(TASK, source, str(dest), max_reject_fraction=0.2)  # over what was left there
    assert manifest["rejects"]["count"] == 2


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_split_is_refused(tmp_path, split):
    others = [name for name in ("train", "val", "test") if name != split]
    source = folder(tmp_path / "in", plain(8, split=others))
    with pytest.raises(UserError, match=f"the {split} split is empty"):
        ingest(TASK, source, str(tmp_path / "out"))


def test_one_class_only_is_refused(tmp_path):
    table = [(path, "a", *rest) for path, _, *rest in plain(9)]
    with pytest.raises(UserError, match="has only a; at least two classes"):
        ingest(TASK, folder(tmp_path / "in", table), str(tmp_path / "out"))


def test_sources_and_destinations_that_cannot_be(tmp_path, source):
    with pytest.raises(UserError, match="does not exist"):
        ingest(TASK, str(tmp_path / "nowhere"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="holds no files"):
        ingest(TASK, str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(UserError, match="bucket"):
        ingest(TASK, "s3://no-such-bucket/x", str(tmp_path / "out"))
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be written"):
        ingest(TASK, source, str(tmp_path / "file" / "out"))
    storage.write_bytes(str(tmp_path / "mine" / "train" / "thesis.txt"), b"x")
    with pytest.raises(UserError, match=r"holds train/thesis\.txt, which is not ours"):
        ingest(TASK, source, str(tmp_path / "mine"))
    with pytest.raises(UserError, match="is no data set"):
        load_manifest(str(tmp_path))
    storage.write_json(str(tmp_path / "manifest.json"), {"name": "a web app"})
    with pytest.raises(UserError, match="not that of a data set"):
        load_manifest(str(tmp_path))


# --- other tasks ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cohort(Toy):
    """Numbers, a vector, labels and a text: what the other tasks' columns are like."""

    name: ClassVar[str] = "cohort"

    def networks(self):
        raise NotImplementedError

    stages = draw = networks

    def survey(self, uri):
        if uri.endswith("empty"):
            raise UserError(f"{uri} is empty")
        return self, [{"uri": uri, "first": first} for first in (0, 40)]

    def read(self, source):
        if source["uri"].endswith("closed") and source["first"]:
            raise UserError("the store refuses the keys")
        for i in range(source["first"], source["first"] + 40):
            if i == 7:
                yield Reject("row 7", "age is negative")
                continue
            yield {
                "age": None if i == 8 else i / 2, "vector": np.arange(3) + i, "name": f"n{i}",
                "kinds": [i % 2, 1], "source": f"row {i}",
            }  # fmt: skip


COHORT = Cohort(
    schema=Schema(
        (
            Field(name="age", kind="number", parts=("input",)),
            Field(name="vector", kind="number", parts=("input",), shape=(3,)),
            Field(name="name", kind="text", parts=("input",)),
            Field(name="kinds", kind="labels", parts=("target",), shape=(2,), values=("x", "y")),
        )
    )
)


def test_columns_of_every_kind(tmp_path):
    dest = str(tmp_path / "set")
    manifest = ingest(COHORT, str(tmp_path), dest)
    found = [row for split in ("train", "val", "test") for row in written(dest, manifest, split)]
    assert len(found) == 79 and manifest["rejects"]["reasons"] == {"age is negative": 1}
    row = next(row for row in found if row["name"] == "n9")
    assert (row["age"], row["vector"], row["kinds"]) == (4.5, [9, 10, 11], [1, 1])
    assert np.isnan(next(row for row in found if row["name"] == "n8")["age"])
    assert sum(facts["classes"]["y"] for facts in manifest["splits"].values()) == 79
    types = {field.name: str(arrow_type(field)) for field in COHORT.schema.fields}
    assert types == {
        "age": "float",
        "vector": "fixed_size_list<item: float>[3]",
        "name": "string",
        "kinds": "fixed_size_list<item: uint8>[2]",
    }


def test_what_a_worker_tells_the_user_arrives_as_one_sentence(tmp_path):
    with pytest.raises(UserError) as caught:
        ingest(COHORT, str(tmp_path / "closed"), str(tmp_path / "set"))
    assert str(caught.value) == "the store refuses the keys"
