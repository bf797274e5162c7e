"""The trainings that a home remembers."""

from __future__ import annotations

from typing import Any

from aigc_ray import storage
from aigc_ray.errors import UserError


def listed() -> list[dict[str, Any]]:
    """Every run, newest first: name, state, step, validation metrics."""
    found = [_brief(name) for name in _names()]
    # Two runs of one second are told apart by their ordinals.
    return sorted(found, key=_age, reverse=True)


def _age(run: dict[str, Any]) -> tuple[str, int]:
    ordinal = run["name"].rpartition("-")[2]
    return run["created"], int(ordinal) if ordinal.isdigit() else 0


def show(name: str) -> dict[str, Any]:
    """A run's settings, its progress with its history, and its result where it is done."""
    uri = _uri(name)
    if not storage.exists(storage.join(uri, "run.json")):
        known = ", ".join(_names()) or "none"
        raise UserError(f"there is no run {name!r}; runs are {known}")
    parts = {"run": "run.json", "progress": "progress.json", "result": "summary.json"}
    return {key: _read(uri, file) for key, file in parts.items()}


def prune(keep: int) -> dict[str, Any]:
    """Delete checkpoints of finished runs, and all of the runs but the newest `keep`.

    A run that is not finished is left alone: it may be under way. Registered models live elsewhere
    and are never touched.
    """
    if keep < 0:
        raise UserError(f"keep is 0 or more; got {keep}")
    deleted, freed = [], 0
    for place, run in enumerate(listed()):
        if run["state"] != "done":
            continue
        uri = _uri(run["name"])
        for where in _checkpoints(uri) if place < keep else [uri]:
            freed += storage.size(where)
            storage.delete(where)
        if place >= keep:
            deleted.append(run["name"])
    return {"deleted": deleted, "freed_bytes": freed}


def _checkpoints(uri: str) -> list[str]:
    """The folders of checkpoints of a run, of its further members, or of a sweep's trials."""
    folders = [uri]
    for kind in ("members", "trials"):
        below = storage.join(uri, kind)
        folders += [storage.join(below, name) for name in storage.children(below)]
    found = [storage.join(folder, "checkpoints") for folder in folders]
    return [folder for folder in found if storage.exists(folder)]


def _brief(name: str) -> dict[str, Any]:
    uri = _uri(name)
    run, progress, summary = (
        _read(uri, file) or {} for file in ("run.json", "progress.json", "summary.json")
    )
    return {
        "name": name,
        "task": run.get("task"),
        "created": run.get("created", ""),
        "state": "done" if summary else "unfinished",
        "step": progress.get("now", {}).get("step"),
        "steps": progress.get("steps"),
        "model": summary.get("model"),
        "validation": summary.get("metrics", {}).get("val"),
    }


def _names() -> list[str]:
    return storage.children(storage.join(storage.home(), "runs"))


def _uri(name: str) -> str:
    return storage.join(storage.home(), "runs", name)


def _read(uri: str, file: str) -> Any:
    where = storage.join(uri, file)
    return storage.read_json(where) if storage.exists(where) else None
