"""Tables of patients as records and as tensors: what training, ingestion and serving share.

A source is a CSV or Parquet file, or a folder of such with the same columns. What the columns are
is declared in a JSON file, or inferred and printed, so that somebody can look at it, correct it and
give it as `columns=FILE`:

    {"time": {"column": "days", "unit": "days"},
     "event": {"column": "status", "happened": ["dead"]},
     "group": "hospital",
     "features": {"age": {"kind": "number", "unit": "years"},
                  "grade": {"kind": "ordinal", "values": ["I", "II", "III"]},
                  "therapy": {"kind": "category", "values": ["no", "yes"]}}}

`group` (perhaps absent) names a column whose rows stay in one split, such as the patient or the
hospital; `split` (perhaps absent) one that says train, val or test. Columns that are not named are
not read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_ray import storage, tables
from aigc_ray.errors import UserError
from aigc_ray.schema import Field, Schema
from aigc_ray.task import Batch, Columns, Record, Reject, Source

MISSING = {
    "",
    "NA",
    "na",
    "N/A",
    "n/a",
    "NaN",
    "nan",
    "NULL",
    "null",
    "None",
    "?",
}  # "none" is a value
KINDS = ("number", "category", "ordinal")
MOST_VALUES = 64  # different texts in a column that is taken for a category
MOST_SLIPS = 0.2  # share of a column of many values that may be no number
# Names under which columns are looked for where nothing is declared, the likeliest first.
TIMES = ("time", "duration", "survival_time", "futime", "time_to_event", "os_months", "d.time")
EVENTS = ("event", "status", "death", "dead", "cens", "fustat", "event_observed", "os_status")
GROUPS = ("patient", "patient_id", "patientid", "subject", "subject_id", "id")
SPLITS = ("split",)
ENTRIES = ("entry", "entry_time", "start", "tstart", "truncation", "left_truncation")
HAPPENED = {"1", "true", "yes", "dead", "died", "death", "deceased", "event"}
NOT_HAPPENED = {"0", "false", "no", "alive", "living", "censored", "none"}
# What a record, a request or a shard calls by these names is not a patient's column.
TAKEN = {
    "time", "event", "split", "patient", "source", "extra", "person", "flag", "row", "warnings",
    "file", "filename", "explain", "horizons", "what_if", "horizon",
}  # fmt: skip
PART_OF_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val",
                 "validation": "val", "test": "test", "testing": "test"}  # fmt: skip


# --- what the columns are ---------------------------------------------------------------------


def survey(uri: str, columns: str | None) -> tuple[Schema, list[Source]]:
    """The schema of a source and the pieces of work it falls into, one a file.

    Raises:
        UserError: there is no table at `uri`, or its columns cannot be told apart.
    """
    paths = _paths(uri)
    seen = _Seen()
    for path in paths:
        seen.look(path)
    if columns is None:
        declared = _inferred(seen)
        text = json.dumps(declared, indent=2)
        print(
            f"columns, as inferred; correct them and give them as columns=FILE:\n{text}",
            file=sys.stderr,
        )
    else:
        declared = _read(columns)
    schema = _schema(declared, seen, columns or uri)
    event, happened = declared["event"], None
    if "happened" in event:
        happened = [str(value).lower() for value in event["happened"]]
    marks = {key: declared[key] for key in ("group", "split") if declared.get(key)}
    return schema, [
        {
            "path": path,
            "name": storage.name(path),
            "rows": rows,
            "time": declared["time"]["column"],
            "event": event["column"],
            "happened": happened,
            **marks,
        }
        for path, rows in zip(paths, seen.rows, strict=True)
    ]


def _paths(uri: str) -> list[str]:
    if tables.is_table(uri):
        if not storage.exists(uri):
            raise UserError(f"{uri} does not exist")
        return [uri]
    found = [storage.join(uri, name) for name in storage.files(uri) if tables.is_table(name)]
    if not found:
        ends = ", ".join(tables.ENDINGS)
        raise UserError(f"{uri} holds no table of patients: files whose names end in {ends}")
    return found


class _Seen:
    """What is in the columns of a source, its values as long as they are few."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.values: dict[str, dict[str, int]] = {}  # column -> value -> rows, at most MOST_VALUES
        self.filled: dict[str, int] = {}  # column -> rows in which it has a value
        self.texts: dict[str, int] = {}  # column -> those in which that is no number
        self.many: set[str] = set()

    def look(self, path: str) -> None:
        count = 0
        for row in tables.read(path):
            count += 1
            if row is None:
                continue
            if not self.values:
                self.values = {name: {} for name in row}
                self.filled, self.texts = dict.fromkeys(row, 0), dict.fromkeys(row, 0)
            if row.keys() != self.values.keys():
                odd = min(row.keys() ^ self.values.keys())
                raise UserError(f"{path} has other columns than the files before it: {odd!r}")
            for name, text in row.items():
                self._value(name, text)
        if not count:
            raise UserError(f"{path} holds no rows")
        self.rows.append(count)

    def _value(self, name: str, text: str) -> None:
        if text in MISSING:
            return
        self.filled[name] += 1
        self.texts[name] += not _is_number(text)
        if name not in self.many:
            known = self.values[name]
            known[text] = known.get(text, 0) + 1
            if len(known) > MOST_VALUES:
                self.many.add(name)
                known.clear()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _inferred(seen: _Seen) -> dict[str, Any]:
    """A declaration from names and values; what cannot be told is asked for."""
    lower = {name.lower(): name for name in seen.values}

    def named(names: Sequence[str]) -> str | None:
        return next((lower[name] for name in names if name in lower), None)

    time, event = named(TIMES), named(EVENTS)
    if time is None or event is None:
        lacking = "time" if time is None else "event"
        raise UserError(
            f"{lacking}: none of the columns {', '.join(seen.values)} is called so; declare them "
            "in a JSON file and give it as columns=FILE"
        )
    entry = named(ENTRIES)
    if entry is not None:
        raise UserError(
            f"{entry} looks like a delayed entry, which is not supported yet; declare the columns "
            "with columns=FILE, without it or as a feature"
        )
    declared: dict[str, Any] = {"time": {"column": time}, "event": {"column": event}}
    group, split = named(GROUPS), named(SPLITS)
    declared |= {key: name for key, name in (("group", group), ("split", split)) if name}
    features: dict[str, Any] = {}
    for name in seen.values:
        if name in (time, event, group, split, ""):
            continue
        if not seen.values[name] and name not in seen.many:
            continue  # nothing stands in it
        # Of many different values a few may be slips of the pen: their rows are set aside.
        slips = MOST_SLIPS * seen.filled[name] if name in seen.many else 0
        if seen.texts[name] <= slips:
            features[name] = {"kind": "number"}
        elif name not in seen.many:
            features[name] = {"kind": "category", "values": sorted(seen.values[name])}
        else:
            print(f"{name} is left out: a text with too many values", file=sys.stderr)
    declared["features"] = features
    return declared


def _read(columns: str) -> dict[str, Any]:
    """A declaration, as far as it can be checked without the data."""
    declared = storage.read_json(columns)
    known = {"time", "event", "group", "split", "features"}
    if not isinstance(declared, dict):
        raise UserError(f"{columns} is an object with {', '.join(sorted(known))}")
    if "entry" in declared:
        raise UserError(f"{columns}: entry: delayed entry is not supported yet; leave it out")
    for key in sorted(declared.keys() - known):
        raise UserError(f"{columns}: {key} is not known; there are {', '.join(sorted(known))}")
    for key in ("time", "event"):
        value = declared.get(key)
        if isinstance(value, str):
            declared[key] = value = {"column": value}
        if not isinstance(value, dict) or not isinstance(value.get("column"), str):
            raise UserError(f'{columns}: {key} names its column, as {{"column": "{key}"}}')
    features = declared.get("features")
    if not isinstance(features, dict) or not features:
        raise UserError(f"{columns}: features names at least one column and its kind")
    for name, about in features.items():
        if isinstance(about, str):
            features[name] = about = {"kind": about}
        if not isinstance(about, dict) or about.get("kind") not in KINDS:
            raise UserError(f"{columns}: {name}: kind is one of {', '.join(KINDS)}")
        if about["kind"] == "ordinal" and not about.get("values"):
            raise UserError(f"{columns}: {name} is ordinal: values lists them, the lowest first")
    return declared


def _schema(declared: Mapping[str, Any], seen: _Seen, where: str) -> Schema:
    """The fields of a declaration, once its columns are found in the data."""
    used = [declared["time"]["column"], declared["event"]["column"], *declared["features"]]
    used += [declared[key] for key in ("group", "split") if declared.get(key)]
    for name in used:
        if name not in seen.values:
            known = ", ".join(seen.values)
            raise UserError(f"{where}: there is no column {name!r}; there are: {known}")
    _check_event(declared["event"], seen)
    fields = []
    for name, about in declared["features"].items():
        if name in TAKEN:
            raise UserError(f"{name}: a feature cannot be called so; rename the column")
        if name in (declared["time"]["column"], declared["event"]["column"]):
            raise UserError(f"{name} is what is to be predicted: it cannot be a feature as well")
        kind: Any = "number" if about["kind"] == "number" else "category"
        values: tuple[str, ...] = ()
        if kind == "category":
            values = tuple(map(str, about.get("values") or sorted(seen.values[name])))
            if name in seen.many and not about.get("values"):
                raise UserError(f"{name} has more than {MOST_VALUES} values: too many categories")
            if len(set(values)) != len(values) or not values:
                raise UserError(f"{name}: values are different from each other, and at least one")
        ordered = about["kind"] == "ordinal"
        fields.append(
            Field(
                name=name,
                kind=kind,
                parts=("generated", "input"),
                values=values,
                ordered=ordered,
                unit=str(about.get("unit", "")),
            )
        )
    if not fields:
        raise UserError(f"{where}: no column is left that could be a feature")
    unit = str(declared["time"].get("unit", ""))
    outcome: Any = ("generated", "target")
    fields.append(Field(name="time", kind="number", parts=outcome, unit=unit))
    fields.append(Field(name="event", kind="number", parts=outcome))
    return Schema(tuple(fields))


def _check_event(event: Mapping[str, Any], seen: _Seen) -> None:
    """Refuse several causes of an end, unless it is said which of them is the event."""
    name = event["column"]
    if "happened" in event:
        wanted = event["happened"]
        if not isinstance(wanted, list) or not wanted:
            raise UserError("event: happened lists the values that mean that the event happened")
        for value in wanted:
            if str(value) not in seen.values[name]:
                raise UserError(f"event: {value!r} does not occur in {name}")
        return
    values = [] if name in seen.many else list(seen.values[name])
    odd = [value for value in values if value.lower() not in HAPPENED | NOT_HAPPENED]
    if name in seen.many or odd:
        some = ", ".join(sorted(values)[:8]) or "many values"
        raise UserError(
            f"event: {name} holds {some}; several causes are not supported yet: say which values "
            f'mean the event, as "event": {{"column": "{name}", "happened": [...]}}'
        )


# --- rows -------------------------------------------------------------------------------------


def read(source: Source, schema: Schema) -> Iterator[Record | Reject]:
    """The patients of one file."""
    for number, row in enumerate(tables.read(source["path"]), 1):
        where = f"{source['name']}:{number}"
        if row is None:
            yield Reject(where, "the row has not as many fields as the header")
            continue
        try:
            record = _features(row, schema)
            if all(value is None for value in record.values()):
                raise UserError("every feature is missing")
            record["time"] = _time(row[source["time"]])
            record["event"] = _event(row[source["event"]], source["happened"])
            if record["event"] and record["time"] == 0:
                raise UserError("time is 0: the event was there from the beginning")
            split = row[source["split"]].lower() if "split" in source else None
            if split is not None and split not in PART_OF_NAMES:
                raise UserError(f"split is train, val or test; got {split!r}")
        except UserError as error:
            yield Reject(where, str(error))
            continue
        group = row[source["group"]] if "group" in source else ""
        record |= {"split": split and PART_OF_NAMES[split], "source": where, "extra": None}
        yield record | {"patient": group or None}


def _features(row: Mapping[str, Any], schema: Schema) -> Record:
    """A patient's columns, None where nothing stands; what is no value of its field is refused."""
    return {field.name: value_of(field, row.get(field.name)) for field in schema.part("input")}


def value_of(field: Field, given: Any) -> float | int | None:
    """A value as it is learned from: a number, or the index of a category."""
    if given is None:
        return None
    text = _text(given)
    if field.kind == "category" and text in field.values:  # "NA" may be one
        return field.index(text)
    if text in MISSING:
        return None
    if field.kind == "category":
        return field.index(text)
    if isinstance(given, (bool, list, dict)):
        raise UserError(f"{field.name} is a number; got {given!r}")
    try:
        number = float(given)
    except ValueError:
        raise UserError(f"{field.name} is a number; got {given!r}") from None
    if not math.isfinite(number) or abs(number) > 1e30:
        raise UserError(f"{field.name} is a finite number; got {given!r}")
    return number


def _text(given: Any) -> str:
    """As tables.py writes it: true is 1, and 2.0 is 2."""
    if isinstance(given, bool):
        return str(int(given))
    if isinstance(given, float) and given.is_integer():
        return str(int(given))
    return str(given).strip()


def _time(text: str) -> float:
    if text in MISSING:
        raise UserError("time is missing")
    if not _is_number(text) or float(text) < 0:
        raise UserError(f"time is how long the patient was followed, from 0 on; got {text!r}")
    return float(text)


def _event(text: str, happened: Sequence[str] | None) -> float:
    if text in MISSING:
        raise UserError("event is missing")
    return float(text.lower() in (HAPPENED if happened is None else happened))


def encode(columns: Columns, row: Tensor, schema: Schema) -> Batch:
    """Numbers as float32, 0 where they are not known; categories as indices, 0 where not known.

    `known["event"]` says whether the outcome is; `known["time"]`, whether the event's own time is,
    and not only that it came later.
    """
    size = len(row)
    value: dict[str, Tensor] = {}
    known: dict[str, Tensor] = {}
    for field in schema.fields:
        category = field.kind == "category"
        dtype = np.int64 if category else np.float32
        if field.name not in columns:
            value[field.name] = torch.zeros(size, dtype=torch.int64 if category else torch.float32)
            known[field.name] = torch.zeros(size, dtype=torch.bool)
            continue
        column = torch.from_numpy(np.array(columns[field.name], dtype)).reshape(size)
        here = column >= 0 if category else ~column.isnan()
        value[field.name] = torch.where(here, column, torch.zeros_like(column))
        known[field.name] = here
    known["event"] = known["event"] & known["time"]
    known["time"] = known["event"] & (value["event"] > 0)
    return Batch(value, known, torch.ones(size), row)


# --- requests and answers ---------------------------------------------------------------------

MOST_HORIZONS = 64
ASSOCIATION = (
    "how patients with these values fared, not what changing them would do: the difference is an "
    "association, no cause"
)


def parse(item: Mapping[str, Any], schema: Schema) -> Record:
    """A patient of a request: features by name, each of which may be missing; `horizons`; and
    under `what_if` other values of some of the features."""
    names = [field.name for field in schema.part("input")]
    known = f"a patient has {', '.join(names)}, horizons and what_if"
    for key in sorted(item.keys() - {*names, "horizons", "what_if", "time", "event"}):
        raise UserError(f"{key} is not known here; {known}")
    record = _features(item, schema)
    if all(value is None for value in record.values()):
        raise UserError(f"{names[0]}: a patient has at least one feature; all are missing")
    changed = item.get("what_if")
    if changed is not None:
        changed = object_of(changed, "what_if")
        for key in sorted(changed.keys() - set(names)):
            raise UserError(f"what_if: {key} is not known here; {known}")
        if not changed:
            raise UserError("what_if is an object with at least one feature and its other value")
        other = _features({**item, **changed}, schema)
        record["variants"] = {"what_if": other | {"warnings": [ASSOCIATION]}}
    horizons = item.get("horizons", [])
    if isinstance(horizons, str):  # from a table
        horizons = horizons.replace(",", " ").replace(";", " ").split()
    if not isinstance(horizons, list) or len(horizons) > MOST_HORIZONS:
        raise UserError(f"horizons is a list of at most {MOST_HORIZONS} times; got {horizons!r}")
    times = []
    for horizon in horizons:
        text = str(horizon)
        if isinstance(horizon, bool) or not _is_number(text) or float(text) < 0:
            raise UserError(f"horizons are times from 0 on; got {horizon!r}")
        times.append(float(text))
    for one in (record, *record.get("variants", {}).values()):
        one["horizons"] = times
    return record


def answer(
    prediction: Mapping[str, np.ndarray], record: Mapping[str, Any], schema: Schema
) -> dict[str, Any]:
    """What is foreseen for one patient: the curve with its band, median, interval, and risk."""
    from aigc_ray.tasks.prognosis import metrics

    times, survival = prediction["times"], prediction["survival"]
    names = ("survival", "low", "high")
    curves = np.stack([prediction[name] for name in names])
    shown = times <= times[-2]  # up to the end of the follow-up
    curve = {"times": _rounded(times[shown])}
    found: dict[str, Any] = {
        "risk": _rounded(prediction["risk"]),
        "median": _when(times, survival, 0.5),
        "interval": [_when(times, survival, 0.95), _when(times, survival, 0.05)],
        "unit": schema["time"].unit,
        "curve": curve | dict(zip(names, _rounded(curves[:, shown]), strict=True)),
    }
    horizons = np.array(record.get("horizons") or [], float)
    if len(horizons):
        every = _rounded(metrics.at(times, curves, horizons).T)
        found["horizons"] = [
            {"time": time} | dict(zip(names, values, strict=True))
            for time, values in zip(horizons.tolist(), every, strict=True)
        ]
    warnings = _warnings(prediction["range"], record, horizons, float(times[-2]), schema)
    return found | ({"warnings": warnings} if warnings else {})


def _when(times: np.ndarray, survival: np.ndarray, share: float) -> float | None:
    """When so many are left by the curve; None where it does not fall so far while followed."""
    below = np.flatnonzero(survival[:-1] <= share)
    if not len(below):
        return None
    place = max(int(below[0]), 1)
    before, after = (np.log(max(float(survival[p]), 1e-12)) for p in (place - 1, place))
    part = (before - np.log(share)) / max(before - after, 1e-12)
    return float(f"{times[place - 1] + (times[place] - times[place - 1]) * min(part, 1.0):.6g}")


def _warnings(
    ends: np.ndarray,
    record: Mapping[str, Any],
    horizons: np.ndarray,
    last: float,
    schema: Schema,
) -> list[str]:
    numbers = [f for f in schema.part("input") if f.kind == "number" or f.ordered]
    found = []
    for field, (low, high) in zip(numbers, ends.tolist(), strict=True):
        value = record.get(field.name)
        if field.kind == "number" and value is not None and not low <= value <= high:
            found.append(
                f"{field.name}={value:g} lies outside what was trained on, {low:.6g} to {high:.6g}"
            )
    if len(horizons) and horizons.max() > last:
        found.append(f"nobody was followed for longer than {last:.6g}: later horizons are a guess")
    return found


def _rounded(values: Any) -> Any:
    """As JSON, with six digits."""
    values = np.asarray(values, np.float64)
    power = 5 - np.floor(np.log10(np.maximum(np.abs(values), 1e-99)))
    scale = 10.0 ** np.abs(power)  # a division by a power of ten leaves the nearest short decimal
    found = np.where(power < 0, np.round(values / scale) * scale, np.round(values * scale) / scale)
    return found.tolist()


def object_of(given: Any, name: str) -> Mapping[str, Any]:
    """Features as an object, which a command line or a table gives as JSON text."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError:
            raise UserError(f"{name} is a JSON object with features by name") from None
    if not isinstance(given, Mapping):
        raise UserError(f"{name} is an object with features by name; got {given!r}")
    return given


def items(
    value: Mapping[str, Tensor], known: Mapping[str, Tensor], schema: Schema
) -> list[dict[str, Any]]:
    """Generated rows as JSON; what is missing is null."""
    columns: dict[str, list[Any]] = {}
    for field in schema.fields:
        drawn = value[field.name].tolist()
        if field.kind == "category":
            column: list[Any] = [field.values[index] for index in drawn]
        elif field.name == "event":
            column = [int(number > 0.5) for number in drawn]
        else:
            column = [float(f"{number:.6g}") for number in drawn]
        if field.name not in ("time", "event"):
            here = known[field.name].tolist()
            column = [one if k else None for one, k in zip(column, here, strict=True)]
        columns[field.name] = column
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
