"""Bytes, wherever they live: the same functions for a local folder and for s3://bucket/prefix.

The endpoint and keys of S3 come from the AWS environment variables (`AWS_ENDPOINT_URL` for any
S3-compatible store). Names that start with a dot are ours (locks, temporary files): they are not
listed, sized, uploaded or downloaded. Faults of the outside become a `UserError` of one sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigc_ray.errors import Changed as Changed
from aigc_ray.errors import Exists as Exists
from aigc_ray.errors import Missing as Missing
from aigc_ray.errors import UserError
from aigc_ray.folder import Folder, atomic
from aigc_ray.s3 import Bucket

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def home() -> str:
    """Where runs, models and data live: AIGC_HOME, or ./aigc-home; an absolute path or s3://…"""
    uri = os.environ.get("AIGC_HOME") or "aigc-home"
    path = local(uri)
    if path is None:
        return uri.rstrip("/")
    # Ray sets this variable in the driver of a submitted job only.
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and uri[0] not in "/~" and "://" not in uri:
        raise UserError(
            f"AIGC_HOME is {uri!r}, a relative path, which would vanish with the folder of this "
            "job: set it to an absolute path or s3://bucket/prefix"
        )
    return str(path)


def cache() -> Path:
    """The local folder for copies of what lives elsewhere; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aigc_ray"


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def name(uri: str) -> str:
    """The last part of an address."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def local(uri: str) -> Path | None:
    """The absolute path of a local address, None for one in S3."""
    place = _place(uri)
    return place.path if isinstance(place, Folder) else None


def filesystem(uri: str) -> tuple[FileSystem, str]:
    """For Ray Data and Parquet. Its pickle holds no keys: workers read their own environment."""
    place = _place(uri)
    if isinstance(place, Folder):
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(place.path)
    return place.filesystem(), f"{place.bucket}/{place.key}".rstrip("/")


def exists(uri: str) -> bool:
    """Whether a file, or a folder that is not empty, is there (locally also an empty folder)."""
    with _at(uri) as place:
        return place.exists()


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """A whole file; one of more than `limit` bytes is refused before it is read."""
    with _at(uri) as place:
        if limit is not None and (found := place.size()) > limit:
            raise UserError(f"{uri} has {found} bytes, more than the {limit} allowed")
        return place.read()[0]


def write_bytes(uri: str, data: bytes) -> None:
    """All or nothing: a reader sees the old file or the new one, also after a crash."""
    with _at(uri) as place:
        place.put(BytesIO(data))


def read_json(uri: str) -> Any:
    try:
        return json.loads(read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{uri} is not JSON: {error}") from error


def write_json(uri: str, data: Any) -> None:
    """Strict JSON: a NaN is refused here, since browsers cannot read it."""
    write_bytes(uri, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def children(uri: str) -> list[str]:
    """The sorted names of the files and folders right below; none where nothing is."""
    with _at(uri) as place:
        return sorted(child for child in place.children() if not child.startswith("."))


def files(uri: str) -> dict[str, int]:
    """The bytes of every file below, at any depth, by its sorted relative name."""
    with _at(uri) as place:
        found = sorted(place.files().items())
    return {key: length for key, length in found if "/." not in f"/{key}"}


def size(uri: str) -> int:
    """Bytes of a file, or of all files below a folder."""
    below = files(uri)
    with _at(uri) as place:
        return sum(below.values()) if below else place.size()


def delete(uri: str) -> None:
    """Delete a file or a folder with all that is below; nothing there is no error."""
    with _at(uri) as place:
        place.delete()


def upload(folder: Path, uri: str, last: str = "MANIFEST.json") -> None:
    """Copy all files of a folder; `last` is written last, so it marks a complete copy."""
    names = files(str(folder))
    if not names:
        raise UserError(f"{folder} holds no files to upload")
    for relative in sorted(names, key=lambda relative: (relative == last, relative)):
        with _at(join(uri, relative)) as place, (folder / relative).open("rb") as source:
            place.put(source)


def download(uri: str, folder: Path) -> None:
    """Copy all files below an address into a local folder."""
    names = files(uri)
    if not names:
        raise Missing(f"{uri} holds no files")
    for relative in names:
        target = folder / relative
        if not target.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{join(uri, relative)} would be written outside {folder}")
        copy(join(uri, relative), target)


def copy(uri: str, target: Path) -> None:
    """Copy one file to a local path, which appears only when it is complete."""
    with _at(uri) as place, _at(str(target)), atomic(target) as file:
        place.get(file)


def create(uri: str, data: bytes) -> None:
    """Write a file that must not be there yet: of many writers one succeeds, others get Exists."""
    with _at(uri) as place:
        place.swap(data, None)


def read_tagged(uri: str) -> tuple[bytes, str]:
    """A file and the tag that `replace` wants to see."""
    with _at(uri) as place:
        return place.read()


def replace(uri: str, data: bytes, tag: str) -> None:
    """Write a file only if it is still the one whose tag was read, else Changed."""
    with _at(uri) as place:
        place.swap(data, tag)


def _place(uri: str) -> Folder | Bucket:
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return Folder(rest if separator else uri)
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise UserError(f"{uri!r} is no address: write a local path or s3://bucket/prefix")
    return Bucket(bucket, key)


@contextmanager
def _at(uri: str) -> Iterator[Folder | Bucket]:
    """The place of an address, its faults told in one sentence."""
    place = _place(uri)
    with place.faults():
        yield place
