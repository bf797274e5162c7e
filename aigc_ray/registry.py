"""Where trained models pass to serving: immutable versions, and aliases that move atomically.

HOME/models/TASK/VERSION/… is written once; its number is claimed by TASK/claims/VERSION, which also
holds the hash of the version's manifest. TASK/aliases/ALIAS.json says which version an alias means,
and since when. A version is there once its MANIFEST.json is.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from aigc_ray import manifest, storage
from aigc_ray.card import card
from aigc_ray.errors import UserError

PRETRAINED = "pretrained"  # an alias that means what is part of this package
ATTEMPTS = 50  # at an alias that others move at the same time
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_NAMED = re.compile(r"(?P<task>[A-Za-z][A-Za-z0-9_-]*)(?:@(?P<alias>[^/]*)|:(?P<version>[^/]*))")


class Resolved(NamedTuple):
    """What a model's name means at this moment."""

    task: str
    version: int | None  # None: a folder outside the registry
    uri: str
    sha256: str  # of its manifest


def register(task: str, folder: Path, home: str | None = None) -> int:
    """Copy a folder (model.json, weights*.safetensors, …) into the registry as a new version."""
    described = storage.read_json(str(folder / "model.json"))
    if not _WORD.fullmatch(task) or described.get("task") != task:
        raise UserError(f"{folder / 'model.json'} is of task {described.get('task')!r}, not {task}")
    if not list(folder.glob("weights*.safetensors")):
        raise UserError(f"{folder} holds no weights*.safetensors")
    storage.write_bytes(str(folder / "card.md"), card(described).encode())
    sha256 = manifest.sha256_of(manifest.seal(folder))
    version = _claim(_task(task, home), sha256)
    storage.upload(folder, storage.join(_task(task, home), str(version)), last=manifest.NAME)
    return version


def resolve(model: str, home: str | None = None) -> Resolved:
    """The folder and hash behind `diagnosis@production`, `diagnosis:7` or a URI."""
    named = _NAMED.fullmatch(model)
    if not named:
        return _resolve_folder(model)
    task, alias, number = named["task"], named["alias"], named["version"]
    if alias == PRETRAINED:
        return _resolve_folder(str(_packaged(task)))
    if not storage.children(_task(task, home)):
        known = _listed(storage.children(storage.join(home or storage.home(), "models")))
        raise UserError(f"no model of task {task!r} is registered; registered are: {known}")
    if alias is None:
        return _resolve_version(task, number, home)
    uri = storage.join(_task(task, home), "aliases", f"{alias}.json")
    try:
        state = _state(storage.read_bytes(uri), uri)
    except storage.Missing:
        known = _listed(_aliases(task, home))
        raise UserError(f"{task} has no alias {alias!r}; its aliases are: {known}") from None
    resolved = _resolve_version(task, str(state["version"]), home)
    if resolved.sha256 != state["sha256"]:
        raise UserError(f"{uri} is damaged: its SHA-256 is not that of version {state['version']}")
    return resolved


def fetch(model: str, home: str | None = None) -> Path:
    """A verified local folder of a model; a copy from S3 is kept in the cache."""
    return _fetch(resolve(model, home))


def promote(
    model: str, alias: str = "production", by: str | None = None, home: str | None = None
) -> dict[str, Any]:
    """Let an alias mean this version from now on, once all its hashes are verified.

    Raises:
        UserError: there is no such version, it is damaged, or its generator copies training rows.
    """
    target = resolve(model, home)
    if model.endswith(f"@{PRETRAINED}"):  # what is promoted lies in the registry
        with TemporaryDirectory(prefix="aigc-") as temporary:
            copy = Path(temporary) / "copy"
            storage.download(target.uri, copy)
            target = resolve(f"{target.task}:{register(target.task, copy, home)}", home)
    version = target.version
    if version is None:
        raise UserError(f"{model} is not a registered version: promote TASK:VERSION or TASK@ALIAS")
    described = storage.read_json(str(_fetch(target, fresh=True) / "model.json"))
    generation = described.get("generation") or {}
    if generation.get("copies"):
        names = [name for name in ("copy_rate", "plain_copy_rate") if name in generation]
        rates = [generation[name]["value"] for name in names]
        raise UserError(
            f"{model} copies: {100 * max(rates):.1f} % of what it generates lies as near to a "
            "training row as the nearest 1 % of unseen rows do; train it with more data, more "
            "augmentation or fewer steps"
        )

    def change(state: dict[str, Any] | None) -> dict[str, Any]:
        history = state["history"] if state else []
        before = state["version"] if state else None
        if state and before == version:  # else `previous` would name the version itself
            return state
        entry = _entry("promote", version, before, by)
        return _new_state(target, before, [*history, entry])

    return _move(target.task, alias, change, home)


def rollback(
    task: str, alias: str = "production", by: str | None = None, home: str | None = None
) -> dict[str, Any]:
    """Let an alias mean what it meant before its last promotion; again goes further back."""

    def change(state: dict[str, Any] | None) -> dict[str, Any]:
        stack = _promoted(state["history"]) if state else []
        if state is None or len(stack) < 2:
            known = _listed(_aliases(task, home))
            raise UserError(
                f"{task}@{alias} has no earlier version to roll back to; aliases are: {known}"
            )
        target = _resolve_version(task, str(stack[-2]), home)
        _fetch(target, fresh=True)
        entry = _entry("rollback", stack[-2], stack[-1], by)
        before = stack[-3] if len(stack) > 2 else None
        return _new_state(target, before, [*state["history"], entry])

    return _move(task, alias, change, home)


def models(home: str | None = None) -> list[dict[str, Any]]:
    """Every registered version, the newest of a task first; a damaged one says so."""
    root = storage.join(home or storage.home(), "models")
    found: list[dict[str, Any]] = []
    with ThreadPoolExecutor(8) as pool:  # each is a few requests where the home is in S3
        for task in storage.children(root):
            summary = partial(_summary, task, _aliases(task, home), home)
            found += pool.map(summary, reversed(_versions(task, home)))
    return found


def _packaged(task: str) -> Path:
    """The folder of the model that comes with this package."""
    root = Path(__file__).parent / PRETRAINED
    if not (root / task / manifest.NAME).exists():
        known = _listed(sorted(path.parent.name for path in root.glob(f"*/{manifest.NAME}")))
        raise UserError(f"{task} has no pretrained model in this package; there are: {known}")
    return root / task


def show(model: str, home: str | None = None) -> dict[str, Any]:
    """Everything that is recorded about one model, its card included."""
    found = resolve(model, home)
    sealed = manifest.read(found.uri)
    described = json.loads(_member(found.uri, "model.json", sealed))
    aliases = _aliases(found.task, home) if found.version is not None else {}
    return {
        **found._asdict(),
        "aliases": [alias for alias, state in aliases.items() if state["version"] == found.version],
        "model": described,
        "card": card(described),
        "files": sealed["files"],
    }


def _task(task: str, home: str | None) -> str:
    return storage.join(home or storage.home(), "models", task)


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"


def _claim(task: str, sha256: str) -> int:
    """A number that no other writer has, even one that registers at the same moment."""
    taken = [int(name) for name in storage.children(storage.join(task, "claims")) if name.isdigit()]
    version = max(taken, default=0) + 1
    claim = json.dumps({"sha256": sha256, "when": _now(), "nonce": os.urandom(8).hex()}).encode()
    while True:
        try:
            storage.create(storage.join(task, "claims", str(version)), claim)
            return version
        except storage.Exists:
            version += 1


def _versions(task: str, home: str | None) -> list[int]:
    """The complete versions: one that a crash cut short has no manifest."""
    uri = _task(task, home)
    numbers = sorted(int(name) for name in storage.children(uri) if name.isdigit())
    return [n for n in numbers if storage.exists(storage.join(uri, str(n), manifest.NAME))]


def _resolve_version(task: str, number: str, home: str | None) -> Resolved:
    uri = storage.join(_task(task, home), number)
    if not number.isdecimal() or not storage.exists(storage.join(uri, manifest.NAME)):
        known = _listed(_versions(task, home))
        raise UserError(f"{task} has no version {number!r}; its versions are: {known}")
    claim = storage.join(_task(task, home), "claims", number)
    sha256 = manifest.sha256_of(manifest.read(uri))
    if storage.read_json(claim).get("sha256") != sha256:
        raise UserError(f"{storage.join(uri, manifest.NAME)} is not the one that {claim} names")
    return Resolved(task, int(number), uri, sha256)


def _resolve_folder(uri: str) -> Resolved:
    try:
        sealed = manifest.read(uri)
    except storage.Missing:
        raise UserError(
            f"{uri!r} is no model: write TASK@ALIAS, TASK:VERSION or the address of a folder "
            f"with a {manifest.NAME}"
        ) from None
    task = json.loads(_member(uri, "model.json", sealed)).get("task", "")
    path = storage.local(uri)
    return Resolved(task, None, str(path or uri), manifest.sha256_of(sealed))


def _member(uri: str, name: str, sealed: dict[str, Any]) -> bytes:
    """A small file of a sealed folder, checked against its hash."""
    path = storage.join(uri, name)
    data = storage.read_bytes(path, limit=64 << 20)
    if hashlib.sha256(data).hexdigest() != sealed["files"].get(name, {}).get("sha256"):
        raise UserError(f"{path} is damaged: its SHA-256 is not the one in {manifest.NAME}")
    return data


def _fetch(found: Resolved, fresh: bool = False) -> Path:
    """A folder whose every byte was checked; `fresh` reads the original, not a cached copy."""
    path = storage.local(found.uri)
    if path is not None:
        _check(path, found)
        return path
    cached = storage.cache() / "models" / found.sha256
    if not fresh and _intact(cached, found):
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cached.parent, prefix=".") as temporary:
        copy = Path(temporary) / "copy"
        storage.download(found.uri, copy)
        _check(copy, found)
        if not _intact(cached, found):  # else leave it to the replicas that read it
            with suppress(FileNotFoundError):
                cached.rename(Path(temporary) / "damaged")
            try:
                copy.rename(cached)
            except OSError:  # another replica was first
                _check(cached, found)
    return cached


def _check(folder: Path, found: Resolved) -> None:
    if manifest.sha256_of(manifest.verify(folder)) != found.sha256:
        raise UserError(f"{folder / manifest.NAME} is not that of the model; its hash has changed")


def _intact(folder: Path, found: Resolved) -> bool:
    try:
        _check(folder, found)
    except UserError:
        return False
    return True


def _state(data: bytes, uri: str) -> dict[str, Any]:
    """What an alias file says."""
    try:
        state = json.loads(data)
        if {"version", "sha256", "previous", "history"} <= set(state):
            return dict(state)
    except (ValueError, TypeError):
        pass
    raise UserError(f"{uri} is damaged: it is not an alias as it was written")


def _aliases(task: str, home: str | None) -> dict[str, dict[str, Any]]:
    uri = storage.join(_task(task, home), "aliases")
    names = [name for name in storage.children(uri) if name.endswith(".json")]
    paths = {name.removesuffix(".json"): storage.join(uri, name) for name in names}
    return {alias: _state(storage.read_bytes(path), path) for alias, path in paths.items()}


def _entry(action: str, version: int, before: int | None, by: str | None) -> dict[str, Any]:
    if by is None:
        try:
            by = getpass.getuser()
        except (KeyError, OSError):  # a container may run as a user without a name
            by = "unknown"
    return {"action": action, "version": version, "by": by, "when": _now(), "from": before}


def _new_state(
    target: Resolved, before: int | None, history: list[dict[str, Any]]
) -> dict[str, Any]:
    version, sha256 = target.version, target.sha256
    return {"version": version, "sha256": sha256, "previous": before, "history": history}


def _promoted(history: list[dict[str, Any]]) -> list[int]:
    """The versions that rolling back walks through, the current one last."""
    stack: list[int] = []
    for entry in history:
        if entry["action"] == "rollback":
            stack.pop()
        else:
            stack.append(entry["version"])
    return stack


def _move(
    task: str,
    alias: str,
    change: Callable[[dict[str, Any] | None], dict[str, Any]],
    home: str | None,
) -> dict[str, Any]:
    """Apply a change to an alias as if there were no other writers."""
    if not _WORD.fullmatch(alias):
        raise UserError(f"an alias is a word of letters, digits, - and _; got {alias!r}")
    uri = storage.join(_task(task, home), "aliases", f"{alias}.json")
    for _ in range(ATTEMPTS):
        try:
            data, tag = storage.read_tagged(uri)
        except storage.Missing:
            state = None
        else:
            state = _state(data, uri)
        new = change(state)
        try:
            if state is None:
                storage.create(uri, _bytes(new))
            elif new != state:
                storage.replace(uri, _bytes(new), tag)
            return new
        except (storage.Changed, storage.Exists):
            time.sleep(random.uniform(0, 0.2))
    raise OSError(f"{uri} is moved by others all the time; try again later")


def _bytes(state: dict[str, Any]) -> bytes:
    return (json.dumps(state, indent=2) + "\n").encode()


def _summary(
    task: str, aliases: dict[str, dict[str, Any]], home: str | None, version: int
) -> dict[str, Any]:
    found = {
        "task": task,
        "version": version,
        "aliases": [alias for alias, state in aliases.items() if state["version"] == version],
    }
    try:
        resolved = _resolve_version(task, str(version), home)
        described = json.loads(_member(resolved.uri, "model.json", manifest.read(resolved.uri)))
    except UserError as error:
        return found | {"created": None, "sha256": None, "objective": None, "damaged": str(error)}
    objective = _objective(described)
    return found | {
        "created": described.get("created"),
        "sha256": resolved.sha256,
        "objective": objective,
    }


def _objective(described: dict[str, Any]) -> dict[str, Any] | None:
    """The validation metric that the task is judged by."""
    named = described.get("objective")
    name = named[0] if isinstance(named, list) else named
    metrics = described.get("metrics") or {}
    for split in ("validation", "val"):
        if name in (metrics.get(split) or {}):
            return {"name": name, "split": split, "value": metrics[split][name]}
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
