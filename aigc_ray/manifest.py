"""What proves that a folder is complete and unchanged: MANIFEST.json, written last.

It holds the SHA-256 and the length of every file, and its own hash names the folder's content. Its
bytes have one form only, so that a flipped byte is found in it too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from aigc_ray import storage
from aigc_ray.errors import UserError

NAME = "MANIFEST.json"


def seal(folder: Path) -> dict[str, Any]:
    """Write the manifest of a finished folder; whatever changes later is found by `verify`."""
    names = [name for name in storage.files(str(folder)) if name != NAME]
    if not names:
        raise UserError(f"{folder} holds no files to seal")
    manifest = {"files": {name: _describe(folder / name) for name in names}}
    storage.write_bytes(str(folder / NAME), _canonical(manifest))
    return manifest


def sha256_of(folder_manifest: dict[str, Any]) -> str:
    """The hash that identifies a folder: that of its MANIFEST.json."""
    return hashlib.sha256(_canonical(folder_manifest)).hexdigest()


def parse(data: bytes, uri: str) -> dict[str, Any]:
    """The manifest in the bytes read from `uri`, refused unless it is as `seal` writes it."""
    try:
        manifest = json.loads(data)
        sound = _canonical(manifest) == data and all(
            set(entry) == {"sha256", "bytes"} and ".." not in Path(name).parts and name[0] != "/"
            for name, entry in manifest["files"].items()
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{uri} is damaged: it is not a manifest as it was written")
    return dict(manifest)


def read(uri: str) -> dict[str, Any]:
    """The manifest of the folder at an address."""
    path = storage.join(uri, NAME)
    return parse(storage.read_bytes(path, limit=64 << 20), path)


def verify(folder: Path) -> dict[str, Any]:
    """Refuse a folder with a file that is missing, truncated or changed; return its manifest."""
    manifest = read(str(folder))
    for name, sealed in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: the manifest lists it")
        found = _describe(path)
        if found["bytes"] != sealed["bytes"]:
            raise UserError(f"{path} has {found['bytes']} bytes; it was {sealed['bytes']} long")
        if found["sha256"] != sealed["sha256"]:
            raise UserError(
                f"{path} was changed: its SHA-256 is {found['sha256']}, not {sealed['sha256']}"
            )
    return manifest


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _canonical(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
