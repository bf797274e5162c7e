"""What a data set's columns are and which parts they play.

Whatever is learned from the data (the names of the classes, the size of the images) is kept here,
and so reaches serving inside the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from aigc_ray.errors import UserError

Kind = Literal["image", "category", "labels", "number", "yes_no", "codes", "counts", "text"]
BYTES = ("image", "codes", "counts")  # kinds that lie as bytes
Part = Literal["generated", "condition", "input", "target"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One column: its kind, the shape of a row of it in a `Batch`, and the parts it plays.

    A `category` has one of `values`, encoded as its index (shape ()); `labels` has any number of
    them, encoded as zeros and ones (shape (len(values),)); an `image` has shape (channels, height,
    width) and values in [-1, 1]; `codes` (length,) are whole numbers from 0, the end of a sequence,
    to len(values), and `counts` those from 0 to 255. A `yes_no` is a number that is 0 or 1. A
    category whose `values` rise from the first to the last is `ordered`; `unit` is of a number.
    """

    name: str
    kind: Kind
    parts: tuple[Part, ...]
    shape: tuple[int, ...] = ()
    values: tuple[str, ...] = ()
    ordered: bool = False
    unit: str = ""

    def index(self, value: object) -> int:
        """The position of a category's value."""
        try:
            return self.values.index(str(value))
        except ValueError:
            known = ", ".join(self.values)
            raise UserError(f"{self.name} is one of {known}; got {value!r}") from None

    def to_json(self) -> dict[str, Any]:
        known = asdict(self)
        for key in ("ordered", "unit"):  # said where there is something to say
            if not known[key]:
                del known[key]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in known.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Field:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Schema:
    """The fields of a data set, in a fixed order."""

    fields: tuple[Field, ...] = ()

    def __getitem__(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        known = ", ".join(field.name for field in self.fields) or "none"
        raise UserError(f"the schema has no field {name!r}; its fields are {known}")

    def part(self, part: Part) -> Iterator[Field]:
        """The fields that play this part."""
        return (field for field in self.fields if part in field.parts)

    @property
    def judged(self) -> Field | None:
        """The target that has classes or labels, which are answered or withheld."""
        return next((f for f in self.part("target") if f.kind in ("category", "labels")), None)

    def to_json(self) -> list[dict[str, Any]]:
        return [field.to_json() for field in self.fields]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> Schema:
        return cls(tuple(Field.from_json(item) for item in data))
