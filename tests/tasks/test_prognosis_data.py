"""Tables of patients: what is inferred of them, what is declared, and what is set aside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from aigc_ray import rows, tables
from aigc_ray.errors import UserError
from aigc_ray.ingest import ingest
from aigc_ray.task import Reject
from aigc_ray.tasks.prognosis.task import Prognosis

TABLE = """id,age,sex,stage,empty,time,status
1,50,f,II,,100,1
2,NA,m,I,,20.5,0
2,61,m,,,3,0
3,70.5,f,III,,1,1
"""
DECLARED = {
    "time": {"column": "time", "unit": "days"},
    "event": {"column": "status"},
    "group": "id",
    "features": {
        "age": {"kind": "number", "unit": "years"},
        "sex": "category",
        "stage": {"kind": "ordinal", "values": ["I", "II", "III"]},
    },
}


def written(folder: Path, text: str = TABLE, name: str = "patients.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def declared(folder: Path, **changes) -> str:
    (folder / "columns.json").write_text(json.dumps(DECLARED | changes))
    return str(folder / "columns.json")


def read(folder: Path, text: str = TABLE, columns: str | None = None):
    task, sources = Prognosis(columns=columns).survey(written(folder, text))
    return task, [record for source in sources for record in task.read(source)]


def test_columns_are_inferred_and_printed_for_review(tmp_path, capsys):
    task, records = read(tmp_path)
    fields = {field.name: field for field in task.schema.fields}
    assert list(fields) == ["age", "sex", "stage", "time", "event"]  # the empty one is no feature
    assert fields["age"].kind == "number"
    assert fields["sex"].values == ("f", "m")
    printed = capsys.readouterr().err
    said = json.loads(printed[printed.index("{") :])
    assert said["group"] == "id"
    assert said["features"]["stage"] == {"kind": "category", "values": ["I", "II", "III"]}
    assert [record["patient"] for record in records] == ["1", "2", "2", "3"]
    assert [record["event"] for record in records] == [1, 0, 0, 1]
    assert records[1]["age"] is None
    assert records[2]["stage"] is None
    # What was printed says the same when it is given back.
    (tmp_path / "said.json").write_text(json.dumps(said))
    again, same = read(tmp_path, columns=str(tmp_path / "said.json"))
    assert again.schema == task.schema
    assert same == records


def test_declared_columns_have_units_and_orders(tmp_path):
    task, records = read(tmp_path, columns=declared(tmp_path))
    assert task.schema["age"].unit == "years"
    assert task.schema["time"].unit == "days"
    assert task.schema["stage"].ordered
    assert [record["stage"] for record in records] == [1, 0, None, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"entry": "start"}, "delayed entry is not supported"),
        ({"endpoint": "x"}, "endpoint is not known; there are event, features"),
        ({"time": 3}, "time names its column"),
        ({"time": "days"}, "there is no column 'days'; there are: id, age"),
        ({"features": {}}, "features names at least one column"),
        ({"features": {"age": "real"}}, "age: kind is one of number, category, ordinal"),
        ({"features": {"stage": "ordinal"}}, "stage is ordinal: values lists them"),
        ({"features": {"time": "number"}}, "time: a feature cannot be called so"),
        ({"event": {"column": "status", "happened": ["9"]}}, "'9' does not occur in status"),
        ({"event": {"column": "status", "happened": []}}, "happened lists the values"),
        ({"event": "stage"}, "event: stage holds I, II, III; several causes"),
    ],
)
def test_a_wrong_declaration_is_refused_by_its_key(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, columns=declared(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age,weeks,event\n1,2,1\n", "time: none of the columns age, weeks, event"),
        ("age,time\n1,2\n", "event: none of the columns"),
        ("age,start,time,event\n1,0,2,1\n", "start looks like a delayed entry"),
        ("age,time,status\n1,2,0\n1,2,1\n1,2,2\n", "status holds 0, 1, 2; several causes"),
        ("time,event\n1,1\n", "no column is left that could be a feature"),
        ("", "holds no rows|has no header"),
        ("age,age,time,event\n1,1,1,1\n", "names 'age' twice"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, text)


def test_several_causes_are_one_against_the_rest_where_that_is_said(tmp_path):
    text = "age,time,status\n1,2,0\n1,2,1\n1,2,2\n"
    columns = {"time": "time", "features": {"age": "number"}}
    columns["event"] = {"column": "status", "happened": [2]}
    (tmp_path / "c.json").write_text(json.dumps(columns))
    _, records = read(tmp_path, text, str(tmp_path / "c.json"))
    assert [record["event"] for record in records] == [0, 0, 1]


def test_a_bad_row_is_set_aside_with_its_reason(tmp_path):
    bad = TABLE + "4,old,f,I,,5,1\n5,40,x,I,,5,1\n6,40,f,I,,-1,1\n7,40,f,I,,,1\n"
    bad += "8,40,f,I,,5,\n9,40,f,I\n10,,,,,5,1\n11,40,f,I,,0,1\n12,40,f,I,,2024-03-01,1\n"
    columns = declared(
        tmp_path, features={"age": "number", "sex": {"kind": "category", "values": ["f", "m"]}}
    )
    _, records = read(tmp_path, bad, columns)
    reasons = [record.reason for record in records if isinstance(record, Reject)]
    assert reasons == [
        "age is a number; got 'old'",
        "sex is one of f, m; got 'x'",
        "time is how long the patient was followed, from 0 on; got '-1'",
        "time is missing",
        "event is missing",
        "the row has not as many fields as the header",
        "every feature is missing",
        "time is 0: the event was there from the beginning",
        "time is how long the patient was followed, from 0 on; got '2024-03-01'",
    ]
    sources = [record.source for record in records if isinstance(record, Reject)]
    assert sources[0] == "patients.csv:5"


def test_none_may_be_the_name_of_a_category(tmp_path):
    text = "age,therapy,time,event\n1,none,1,1\n1,new,2,0\n1,None,3,1\n"
    _, records = read(tmp_path, text)
    assert [record["therapy"] for record in records] == [1, 0, None]


def test_csv_compressed_csv_and_parquet_are_the_same(tmp_path):
    _, expected = read(tmp_path)
    (tmp_path / "z").mkdir()
    (tmp_path / "z/patients.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    semicolons = written(tmp_path, "\ufeff" + TABLE.replace(",", ";"), "excel.csv")
    rows = [line.split(",") for line in TABLE.splitlines()]
    columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    table = {
        name: [None if v in ("", "NA") else float(v) for v in values]
        if name in ("id", "age", "time", "status")
        else [v or None for v in values]
        for name, values in columns.items()
    }
    pq.write_table(pa.table(table), tmp_path / "patients.parquet")
    for uri in (f"{tmp_path}/z", semicolons, f"{tmp_path}/patients.parquet"):
        task, sources = Prognosis().survey(uri)
        found = [record for source in sources for record in task.read(source)]
        for one, other in zip(found, expected, strict=True):
            assert {**one, "source": ""} == {**other, "source": ""}


def test_files_of_a_folder_have_the_same_columns(tmp_path):
    written(tmp_path, TABLE, "a.csv")
    written(tmp_path, TABLE.replace("age", "years"), "b.csv")
    with pytest.raises(UserError, match="has other columns than the files before it: 'age'"):
        Prognosis().survey(str(tmp_path))


def test_patients_stay_in_one_split_and_the_sources_splits_are_kept(tmp_path):
    random = np.random.default_rng(0)
    lines = ["clinic,age,time,event"]
    for row in range(400):
        lines.append(f"{row % 200},{random.normal():.4f},{random.exponential():.4f},{row % 2}")
    text = "\n".join(lines)
    columns = {"time": "time", "event": "event", "group": "clinic", "features": {"age": "number"}}
    (tmp_path / "c.json").write_text(json.dumps(columns))
    task = Prognosis(columns=str(tmp_path / "c.json"))
    manifest = ingest(task, written(tmp_path, text), str(tmp_path / "data"), parallel=0)
    assert manifest["patients"] == {"known": 200, "in_several_splits": 0, "rows_left_out": {}}
    assert sum(part["rows"] for part in manifest["splits"].values()) == 400


def test_a_patient_in_two_splits_stays_in_the_one_that_is_met_first(tmp_path):
    lines = ["id,age,time,event,split"]
    for row in range(300):  # the first fifty patients have a row in each of two splits
        part = row % 2 if row < 100 else row // 2 % 3
        split = ("train", "test", "val")[part]
        lines.append(f"{row // 2},{row},{1 + row},{row % 2},{split}")
    text = "\n".join(lines)
    columns = {"time": "time", "event": "event", "group": "id", "split": "split"}
    (tmp_path / "c.json").write_text(json.dumps(columns | {"features": {"age": "number"}}))
    task = Prognosis(columns=str(tmp_path / "c.json"))
    data = str(tmp_path / "data")
    manifest = ingest(task, written(tmp_path, text), data, parallel=0)
    assert manifest["patients"]["in_several_splits"] == 50
    people = {
        name: {
            patient
            for part in rows.scan(data, manifest, name, ["patient"])
            for patient in part["patient"]
        }
        for name in ("train", "test", "val")
    }
    assert not people["train"] & people["test"] and not people["val"] & people["test"]
    # The fifty that were in both, and a third of the hundred others each.
    assert [len(people[name]) for name in ("train", "test", "val")] == [83, 33, 34]


def test_a_table_of_dates_or_of_which_a_tenth_is_broken_is_not_ingested(tmp_path):
    good = "age,time,event\n" + "".join(f"{50 + row},{1 + row},{row % 2}\n" for row in range(190))
    dates = "age,time,event\n" + "".join(f"{50 + row},2024-03-01,1\n" for row in range(20))
    for text, words in (
        (good + "x,y,1\n" * 20, "20 because: age is a number; got 'x'"),
        (dates, "time is how long the patient was followed"),
    ):
        with pytest.raises(UserError, match=words):
            ingest(Prognosis(), written(tmp_path, text), str(tmp_path / "data"), parallel=0)


def test_missing_values_are_not_known_and_the_censored_time_is_only_a_bound(tmp_path):
    task, _ = read(tmp_path, columns=declared(tmp_path))
    batch = task.encode(
        {
            "age": np.array([50, np.nan]), "sex": np.array([0, -1]), "stage": np.array([2, 1]),
            "time": np.array([3.0, 4.0]), "event": np.array([1.0, 0.0]),
        },
        torch.arange(2),
    )  # fmt: skip
    assert batch.known["age"].tolist() == [True, False]
    assert batch.known["sex"].tolist() == [True, False]
    assert batch.known["event"].tolist() == [True, True]
    assert batch.known["time"].tolist() == [True, False]
    assert torch.isfinite(batch.value["age"]).all()


# --- tables -----------------------------------------------------------------------------------


def test_an_upload_is_read_up_to_its_limit():
    assert tables.parse(b"a,b\n1, x\n", "t.csv", 5) == [{"a": "1", "b": "x"}]
    with pytest.raises(UserError, match="more than 1 rows"):
        tables.parse(b"a\n1\n2\n", "t.csv", 1)
    with pytest.raises(UserError, match="row 2 has not the header's columns"):
        tables.parse(b"a\n1\n2,3\n", "t.csv", 5)
    with pytest.raises(UserError, match="holds no rows"):
        tables.parse(b"a\n", "t.csv", 5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"\xff\xfe\x00"),
        ("t.csv", b'a\n"1\n'),
        ("t.csv.gz", b"no gzip"),
        ("t.csv", b""),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_its_name(name, content):
    with pytest.raises(UserError, match=f"^{name}"):
        tables.parse(content, name, 5)


def test_a_bomb_of_zeros_stops_at_its_rows():
    bomb = gzip.compress(b"a\n" + b"1\n" * 10_000_000)
    with pytest.raises(UserError, match="more than 64 rows"):
        tables.parse(bomb, "t.csv.gz", 64)
    bomb = gzip.compress(b"a\n" + b"1" * 30_000_000)
    with pytest.raises(UserError, match="a line has more than 1048576 characters"):
        tables.parse(bomb, "t.csv.gz", 64)


def test_a_parquet_file_that_breaks_off_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not readable as a table"):
        list(tables.read(str(tmp_path / "t.parquet")))
