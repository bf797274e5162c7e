"""One Serve deployment a task: it loads a model, answers, and follows the registry.

Annotations stay real here: with `from __future__ import annotations` Serve would hand `build` a
bare dict.
"""

import asyncio
import base64
import logging
import re
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from aigc_ray import noise, registry
from aigc_ray.errors import UserError
from aigc_ray.model import Model
from aigc_ray.serve.backend import BATCH
from aigc_ray.task import Item, Record, Shortfall

logger = logging.getLogger("ray.serve")

POLL_SECONDS = 5.0
AT_ONCE = (
    256  # rows of a table that are answered together; others wait for about a tenth of a second
)
FAULT: dict[str, Any] = {"fault": True}  # an answer that our own code failed to give


class Arguments(BaseModel):
    """An application's `args` in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid")

    model: str  # e.g. diagnosis@production
    poll_seconds: float = Field(default=POLL_SECONDS, gt=0)


class Served(NamedTuple):
    """A model in memory and what answers call it."""

    model: Model
    name: dict[str, Any]  # task, version, sha256


def load(name: str) -> Served:
    """A model whose hashes were checked and which has computed something of each kind: what the
    first answer would wait for (tables, patterns, the first pass of a network) is there."""
    found = registry.resolve(name)
    # By its version: between two looks at an alias somebody may move it.
    pinned = name if found.version is None else f"{found.task}:{found.version}"
    model = Model.open(registry.fetch(pinned))
    for rows in (1, BATCH):
        batch = model.task.encode({}, noise.keys(0, torch.arange(rows)))
        outcome = {**model.recognise(batch), **model.draw(batch).value}
        for key, value in outcome.items():
            if not torch.isfinite(value).all():
                raise UserError(f"{pinned} is not fit for use: its {key} is not finite")
    next(iter(model.task.generate(model, {"n": 1})), None)
    return Served(model, {"task": found.task, "version": found.version, "sha256": found.sha256})


class TaskServer:
    """Answers for one task, whichever it is.

    A thread looks at the registry every few seconds. When the alias means another version, that
    version is fetched, verified, opened and warmed up there, and then takes the old one's place
    by one assignment; if any of this fails, the old one goes on answering.
    """

    def __init__(self, model: str, poll_seconds: float = POLL_SECONDS) -> None:
        torch.set_num_threads(1)  # replicas are the parallelism
        self._model, self._poll_seconds = model, poll_seconds
        self._served = load(model)
        self._trouble = ""
        self._refreshing = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="registry", daemon=True).start()

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """A light change of serve_config.yaml: {"model": …, "poll_seconds": …}, either or both."""
        self._model = user_config.get("model", self._model)
        self._poll_seconds = float(user_config.get("poll_seconds", self._poll_seconds))
        await asyncio.to_thread(self._refresh)

    def close(self) -> None:
        self._closed.set()

    async def describe(self) -> dict[str, Any]:
        """What is served: the model's name, the fields, the classes, the kind of data."""
        model, name = self._served
        schema = model.task.schema
        conditions = [field for field in schema.part("condition") if field.values]
        return {
            **name,
            "schema": schema.to_json(),
            "classes": list(conditions[0].values) if conditions else [],
            "synthetic": bool((model.info.get("data") or {}).get("synthetic")),
            "calibrated": model.judgement is not None,
        }

    async def predict_list(self, items: list[Any]) -> dict[str, Any]:
        """Answers in the items' order; a bad item has `error` and `field` in place of an answer.

        It computes on the event loop: handed to a thread, the next batch would start at once
        with the few requests that have come, and batches would never fill.
        """
        model, name = self._served  # a promotion meanwhile changes nothing for this call
        answers: list[dict[str, Any]] = [FAULT] * len(items)
        records: dict[int, Record] = {}
        explain: set[int] = set()
        for number, item in enumerate(items):
            if isinstance(item, Mapping) and item.get("explain") is True:
                explain.add(number)
                item = {key: value for key, value in item.items() if key != "explain"}
            try:
                records[number] = _parse(model, item)
            except UserError as error:
                answers[number] = {"error": str(error), "field": _field(model, item, str(error))}
            except Exception as error:
                _log(error)
            await asyncio.sleep(0)  # health checks come through between two large images
        numbers, size = list(records), AT_ONCE if model.task.tabular else BATCH
        for start in range(0, len(numbers), size):
            chunk = numbers[start : start + size]
            found = _answer(model, [records[number] for number in chunk])
            for number, answer in zip(chunk, found, strict=True):
                answers[number] = answer
                if number in explain and "fault" not in answer:
                    answers[number] = answer | {"explanation": _explain(model, records[number])}
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        return {"model": name, "answers": answers}

    async def generate(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """First {"model": …} or {"error": …}, then items and {"shortfall": …}, as they are made.

        It computes in a thread, since a request may take minutes.
        """
        model, name = self._served
        samples = model.task.generate(model, request)
        try:
            first = await asyncio.to_thread(next, samples, None)
        except UserError as error:
            yield {"error": str(error), "field": field_of(str(error), request)}
            return
        yield {"model": name}
        sample = first
        while sample is not None:
            yield _plain(sample)
            sample = await asyncio.to_thread(next, samples, None)

    def _watch(self) -> None:
        while not self._closed.wait(self._poll_seconds):
            self._refresh()

    def _refresh(self) -> None:
        with self._refreshing:
            try:
                found, now = registry.resolve(self._model), self._served.name
                if (found.version, found.sha256) != (now["version"], now["sha256"]):
                    self._served = load(self._model)
                    logger.info(f"{self._model} is version {self._served.name['version']} now")
                self._trouble = ""
            except Exception as error:
                if str(error) != self._trouble:  # once, not every few seconds
                    version = self._served.name["version"]
                    logger.warning(f"version {version} of {self._model} stays in use: {error}")
                self._trouble = str(error)


def field_of(message: str, known: Iterable[str]) -> str | None:
    """The field that a `UserError` is about: by custom its sentence begins with the name."""
    known = set(known)
    first = re.match(r"\w+", message)
    given = re.findall(r"\w+", message.partition("; got ")[2])  # "n and seed are known; got colour"
    words = [first[0] if first else "", *given]
    return next((word for word in words if word in known), None)


def _parse(model: Model, item: Any) -> Record:
    # Not `Model.parse`, which also takes paths: a client must not have our files read.
    if not isinstance(item, Mapping):
        raise UserError(f"an item is an object with named fields; got {type(item).__name__}")
    return model.task.parse(item)


def _field(model: Model, item: Any, message: str) -> str | None:
    if not isinstance(item, Mapping):
        return None
    name = item.get("filename")
    if message.startswith((f"{name}: ", f"{name} ")):  # of an upload its name is told
        return "file"
    return field_of(message, {field.name for field in model.task.schema.fields} | set(item))


def _answer(model: Model, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Where a batch fails, each record is tried alone: it may belong to another's request."""
    try:
        return model.answer(records)
    except Exception as error:
        if len(records) == 1:
            _log(error)
            return [FAULT]
        return [_answer(model, [record])[0] for record in records]


def _explain(model: Model, record: Record) -> dict[str, Any]:
    """The explanation of an answer, its picture in base64; a fault of ours costs only itself."""
    try:
        found = model.explain(record)
    except Exception as error:
        _log(error)
        return {"withheld": "it could not be computed; the service's log says where"}
    return {
        k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in found.items()
    }


def _log(error: Exception) -> None:
    """The kind and the place only: a message may hold a patient's data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    logger.error(f"an item could not be answered: {type(error).__name__} at {place}")


def _plain(sample: Item | Shortfall) -> dict[str, Any]:
    """Without our classes: the ingress does not import torch."""
    return {"shortfall": sample._asdict()} if isinstance(sample, Shortfall) else sample


TaskDeployment = serve.deployment(
    TaskServer,
    name="TaskDeployment",
    max_ongoing_requests=32,  # calls, each with a batch; the ingress bounds them
    health_check_period_s=10,
    health_check_timeout_s=60,  # a batch of large images holds the event loop for a while
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=20,
    ray_actor_options={"num_cpus": 0.25},  # all tasks and the ingress fit on two cores
    logging_config={"enable_access_log": False},
)


def build(args: Arguments) -> Application:
    """A task's application. A wrong name fails here, in one line, not in a replica's log."""
    registry.show(args.model)
    return TaskDeployment.bind(args.model, args.poll_seconds)
