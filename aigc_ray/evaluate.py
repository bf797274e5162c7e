"""How a model fares on a data set, as figures and as a page."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from aigc_ray import registry, report, storage
from aigc_ray.errors import UserError
from aigc_ray.ingest import load_manifest
from aigc_ray.model import Model
from aigc_ray.schema import Schema
from aigc_ray.train import identity_of, now
from aigc_ray.worker import finite, split


def evaluate(
    model: str, data: str, part: Literal["train", "val", "test"] = "test"
) -> dict[str, Any]:
    """Evaluate a model on a split of an ingested data set, its own or another.

    Returns:
        model, data, split, metrics, the address of the report, and how often this split has been
        evaluated with this model: a test split looked at often is no test any more.

    Raises:
        UserError: the model or the data do not exist, or do not fit each other.
    """
    found = registry.resolve(model)
    opened = Model.open(registry.fetch(model))
    facts = load_manifest(data)
    if Schema.from_json(facts["schema"]) != opened.task.schema:
        raise UserError(
            f"{model} was trained on {_brief(opened.task.schema)}; "
            f"{data} holds {_brief(Schema.from_json(facts['schema']))}"
        )
    job = {"data": data, "description": facts}
    metrics = finite(opened.task.evaluate(opened, split(job, opened.task, part)))
    data_hash = identity_of(facts)
    name = hashlib.sha256(f"{found.sha256} {data_hash} {part}".encode()).hexdigest()[:12]
    uri = storage.join(storage.home(), "evaluations", name)
    times = 1
    if storage.exists(storage.join(uri, "result.json")):
        times += storage.read_json(storage.join(uri, "result.json"))["times_evaluated"]
    info = opened.info | {"metrics": {f"{part} of {storage.name(data)}": metrics}}
    pictures = list(opened.task.pictures(opened, split(job, opened.task, part)))
    page = report.render(info, [], pictures, opened.task.objective[0])
    storage.write_bytes(storage.join(uri, "report.html"), page)
    result = {
        "model": {"task": found.task, "version": found.version, "sha256": found.sha256},
        "data": data,
        "data_sha256": data_hash,
        "split": part,
        "rows": facts["splits"][part]["rows"],
        "metrics": metrics,
        "times_evaluated": times,
        "evaluated": now(),
        "report": storage.join(uri, "report.html"),
    }
    storage.write_json(storage.join(uri, "result.json"), result)
    return result


def _brief(schema: Schema) -> str:
    return ", ".join(
        f"{field.name} {'x'.join(map(str, field.shape)) or field.kind}"
        + (f" ({'/'.join(field.values)})" if field.values else "")
        for field in schema.fields
    )
