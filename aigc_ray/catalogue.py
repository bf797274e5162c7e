"""Public data sets by name: where they come from, under what terms, and that they arrive unharmed.

A data set in catalogue.json has one or more files, and a file one or more copies (the official one,
a mirror's); any copy is accepted whose hash is in the catalogue.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from concurrent.futures import Future
from functools import cache
from http.client import HTTPException
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from aigc_ray import storage
from aigc_ray.errors import UserError

COLUMNS = "columns.json"  # beside the file of a table
LIMIT = 4 << 30  # bytes of a file whose length the catalogue does not know


class Unreachable(UserError):  # noqa: N818
    """The canonical address does not answer."""


def names() -> list[str]:
    return sorted(_entries())


def entry(name: str) -> dict[str, Any]:
    """Task, licence, citation, note and files of a data set."""
    try:
        return _entries()[name]
    except KeyError:
        known = ", ".join(names())
        raise UserError(f"there is no data set {name!r}; there are: {known}") from None


def fetch(name: str, home: str | None = None, timeout: float = 10.0) -> Path:
    """The local file of a data set (the folder, if it has several), fetched if it is not here yet.

    It is looked for in HOME/data/raw/NAME, then in AIGC_DATA_MIRROR, in an installed package, and
    at its own address, which has `timeout` seconds to answer. Where it is known what a table's
    columns are, `columns.json` beside it says so.
    """
    copies_of_files = entry(name)["files"]
    root = storage.local(home or storage.home()) or storage.cache()
    folder = root / "data" / "raw" / name
    paths = [_fetch_file(name, copies, folder, timeout) for copies in copies_of_files]
    if declared := entry(name).get("columns"):  # what `ingest … columns=FILE` takes
        storage.write_json(str(folder / COLUMNS), declared)
    return paths[0] if len(paths) == 1 else folder


@cache
def _entries() -> dict[str, dict[str, Any]]:
    text = resources.files("aigc_ray").joinpath("catalogue.json").read_text(encoding="utf-8")
    return {item["name"]: item for item in json.loads(text)["datasets"]}


def _fetch_file(name: str, copies: list[dict[str, Any]], folder: Path, timeout: float) -> Path:
    for copy in copies:
        path: Path = folder / copy["file"]
        if path.exists():
            _check(path, f"{path} (delete it to fetch it again)", copies)
            return path
    mirror = os.environ.get("AIGC_DATA_MIRROR")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as temporary:
        partial = Path(temporary) / "partial"
        for copy in copies:
            uri = storage.join(mirror, copy["mirror"]) if mirror and "mirror" in copy else None
            if uri and storage.exists(uri):
                storage.copy(uri, partial)
                return _keep(partial, uri, copies, folder / copy["file"])
        for copy in copies:
            if "package" in copy:
                found = _installed(copy["package"])
                storage.copy(str(found), partial)
                return _keep(partial, str(found), copies, folder / copy["file"])
        for copy in copies:
            if "url" in copy:
                _download(name, copy, partial, folder, timeout)
                return _keep(partial, copy["url"], copies, folder / copy["file"])
    raise UserError(
        f"{name} has no public address for {copies[0]['file']}: put it into {folder}, or set "
        f"AIGC_DATA_MIRROR to a folder that holds {copies[0].get('mirror')}"
    )


def _installed(path: str) -> Path:
    """A file inside an installed package, which is not imported."""
    package, _, inside = path.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{path} is part of the package {package}, which is not installed")
    return Path(spec.origin).parent / inside


def _keep(partial: Path, source: str, copies: list[dict[str, Any]], path: Path) -> Path:
    _check(partial, source, copies)
    return partial.replace(path)


def _check(path: Path, source: str, copies: list[dict[str, Any]]) -> None:
    """Refuse a file that is none of the copies."""
    # MD5 can be forged, so it counts only where the catalogue knows no SHA-256.
    kinds = ["sha256" if "sha256" in copy else "md5" for copy in copies]
    found = {}
    for kind in kinds:
        with path.open("rb") as file:
            found[kind] = hashlib.file_digest(file, kind).hexdigest()
    if not any(found[kind] == copy[kind] for kind, copy in zip(kinds, copies, strict=True)):
        right = " or ".join(
            f"{kind} {copy[kind]}" for kind, copy in zip(kinds, copies, strict=True)
        )
        got = ", ".join(f"{kind} {value}" for kind, value in found.items())
        raise UserError(f"{source} is not the file it should be: it has {got}; right is {right}")


def _download(name: str, copy: dict[str, Any], path: Path, folder: Path, timeout: float) -> None:
    url, limit = copy["url"], copy.get("bytes", LIMIT)
    left = limit + 1  # one byte more than allowed is enough to know
    try:
        with _open(url, timeout) as answer, path.open("wb") as file:
            while left and (part := answer.read(min(left, 1 << 20))):
                left -= file.write(part)
    except HTTPError as error:
        error.close()
        raise UserError(f"{name}: {url} answered {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"no space is left in {folder} for {copy['file']}") from error
        raise Unreachable(
            f"{name}: {url} could not be reached within {timeout:g} s: put {copy['file']} into "
            f"{folder}, or set AIGC_DATA_MIRROR"
        ) from error
    if not left:
        raise UserError(f"{name}: {url} sends more than the {limit} bytes that it should have")


def _open(url: str, timeout: float) -> IO[bytes]:
    """The answer, or a TimeoutError: urllib's own timeout leaves out the search for the address."""
    answer: Future[IO[bytes]] = Future()

    def ask() -> None:
        try:
            request = Request(url, headers={"User-Agent": "aigc_ray"})
            answer.set_result(urlopen(request, timeout=timeout))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer.result(timeout)
