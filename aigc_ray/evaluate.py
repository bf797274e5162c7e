"""How a model fares on a data set, as figures and as a page; and fitted to it anew."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from aigc_ray import assess, config, registry, report, storage
from aigc_ray import model as models
from aigc_ray.errors import UserError
from aigc_ray.ingest import load_manifest
from aigc_ray.judgement import Policy
from aigc_ray.model import Model
from aigc_ray.schema import Schema
from aigc_ray.train import absolute, examine, identity_of, measure, now

Part = Literal["train", "val", "test"]
TRANSFER_STEPS = 300


def evaluate(
    model: str,
    data: str,
    part: Part = "test",
    *,
    recalibrate: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on a split of an ingested data set, its own or another.

    The generator is measured on the data that it was trained on only: elsewhere a difference would
    be the place's, and no copy could be told.

    Args:
        recalibrate: fit temperature, sets, operating point and what is unusual to the validation
            split of these data first, and register the result as a new version; no network is
            trained.
        changes: `alpha`, `sensitivity`, `cost` and `positive` of the recalibration, and
            `transfer_steps`.

    Returns:
        model, data, split, metrics with intervals and by subgroup, the address of the report, and
        how often this split has been evaluated with this model: a test split looked at often is
        no test any more.

    Raises:
        UserError: the model or the data do not exist, or do not fit each other.
    """
    settings = dict(changes or {})
    steps = config.convert("transfer_steps", int, settings.pop("transfer_steps", TRANSFER_STEPS))
    policy = config.override(Policy(), settings)
    if settings and not recalibrate:
        raise UserError(f"{next(iter(settings))} is a setting of --recalibrate; add it")
    data = absolute(data)
    found = registry.resolve(model)
    opened = Model.open(registry.fetch(model))
    facts = load_manifest(data)
    if Schema.from_json(facts["schema"]) != opened.task.schema:
        raise UserError(
            f"{model} was trained on {_brief(opened.task.schema)}; "
            f"{data} holds {_brief(Schema.from_json(facts['schema']))}"
        )
    job = {"data": data, "description": facts}
    data_hash = identity_of(facts)
    own = opened.info.get("data", {}).get("sha256") == data_hash
    looked_at = opened.info.get("metrics") or {}
    info = opened.info = {**opened.info, "metrics": {}, "intervals": {}, "subgroups": {}}
    info["opinions"] = {}
    if recalibrate:
        heard = 0.0 if opened.judgement is None else opened.judgement.share
        assess.judge(opened, job, policy, afresh=True, share=heard)
    measure(opened, job, [part])
    if own and not recalibrate:
        examine(opened, job, part, steps)
    version = _renewed(opened, found, data, data_hash, part) if recalibrate else None
    name = hashlib.sha256(f"{found.sha256} {data_hash} {part}".encode()).hexdigest()[:12]
    uri = storage.join(storage.home(), "evaluations", name)
    times = 1 if own and part in looked_at else 0  # training looked at it once
    if storage.exists(storage.join(uri, "result.json")):
        times = storage.read_json(storage.join(uri, "result.json"))["times_evaluated"]
    pictures = list(assess.pictures(opened, job, part))
    page = report.render(info, [], pictures, opened.task.objective[0])
    storage.write_bytes(storage.join(uri, "report.html"), page)
    result = {
        "model": {"task": found.task, "version": found.version, "sha256": found.sha256},
        "data": data,
        "data_sha256": data_hash,
        "split": part,
        "rows": facts["splits"][part]["rows"],
        # Where nothing is judged, there are no opinions.
        **{k: info[k].get(part, {}) for k in ("metrics", "intervals", "subgroups", "opinions")},
        "generation": info.get("generation") if own else None,
        "times_evaluated": times + 1,
        "evaluated": now(),
        "report": storage.join(uri, "report.html"),
    }
    if version is not None:
        result["recalibrated"] = f"{found.task}:{version}"
    storage.write_json(storage.join(uri, "result.json"), result)
    return result


def _renewed(opened: Model, found: registry.Resolved, data: str, data_hash: str, part: Part) -> int:
    """The same networks with what was fitted to other data, as a new version."""
    before = f"{found.task}:{found.version}" if found.version is not None else found.uri
    opened.info |= {
        "created": now(),
        "recalibrated": {"from": before, "on": storage.name(data), "sha256": data_hash},
    }
    with tempfile.TemporaryDirectory(prefix="aigc-") as temporary:
        folder = Path(temporary)
        weights = [member.state_dict() for member in opened.members]
        models.write(folder, weights, opened.info, opened.outliers)
        return registry.register(found.task, folder)


def _brief(schema: Schema) -> str:
    return ", ".join(
        f"{field.name} {'x'.join(map(str, field.shape)) or field.kind}"
        + (f" ({'/'.join(field.values)})" if field.values else "")
        for field in schema.fields
    )
