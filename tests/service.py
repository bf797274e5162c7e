"""A tiny real model in a registry, images to ask it about, and calls without a network."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from PIL import Image

from aigc_ray import config, model, registry
from aigc_ray.judgement import Judgement
from aigc_ray.schema import Field, Schema
from aigc_ray.serve import ingress
from aigc_ray.serve.deployment import TaskServer
from aigc_ray.tasks.diagnosis.task import Diagnosis

CLASSES = ("normal", "pneumonia")
PROBLEM = "application/problem+json"


def tiny() -> Diagnosis:
    image = Field(name="image", kind="image", parts=("generated", "input"), shape=(1, 28, 28))
    label = Field(name="label", kind="category", parts=("condition", "target"), values=CLASSES)
    return Diagnosis(width=0.1, recogniser_width=16, schema=Schema((image, label)))


def judged(**changes: Any) -> dict[str, Any]:
    """What a model answers by: sure from .9 on, unsure below."""
    made = Judgement(
        names=CLASSES,
        several=False,
        share=0.0,
        gain=None,
        temperature=1.0,
        alpha=0.1,
        threshold=(0.1, 0.1),
        pooled=(False, False),
        unusual=None,
        points={"pneumonia": {"threshold": 0.3, "sensitivity": 0.95, "specificity": 0.8}},
        rows={},
        on="made up",
    )
    return made.to_json() | changes


def register(seed: int, home: str, spoil: bool = False, **more: Any) -> int:
    """An untrained model as a new version."""
    task = tiny()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = task.networks().state_dict()
    if spoil:
        weights = {name: value * float("nan") for name, value in weights.items()}
    info = {
        "task": "diagnosis",
        "schema": task.schema.to_json(),
        "configuration": config.to_json(task),
        "data": {"synthetic": True},
        "seeds": [seed],
        **more,
    }
    with TemporaryDirectory() as folder:
        model.write(Path(folder) / "model", [weights], info)
        return registry.register("diagnosis", Path(folder) / "model", home)


def png(seed: int, size: tuple[int, int] = (40, 40)) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few kilobytes that says it has 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


def item(data: bytes) -> dict[str, Any]:
    return {"image": base64.b64encode(data).decode()}


def predicted(*items: Any) -> tuple[str, str, dict[str, Any]]:
    """A prediction's request, as `ask` takes it."""
    return "POST", "/v1/diagnosis/predict", {"json": {"items": list(items)}}


def ask(server: Any, *requests: tuple[str, str, dict[str, Any]], token: str | None = None) -> Any:
    """The answers of the HTTP side to (method, path, httpx arguments), asked all at once."""

    async def go() -> list[httpx.Response]:
        services = {"diagnosis": ingress.Service("diagnosis", server)}
        transport = httpx.ASGITransport(ingress.application(services, token))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            calls = (client.request(method, path, **more) for method, path, more in requests)
            return list(await asyncio.gather(*calls))

    answers = asyncio.run(go())
    return answers[0] if len(requests) == 1 else answers


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of an answer, once it is seen to be one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    document = answer.json()
    assert document["status"] == status and document["title"] and document["type"]
    assert "Traceback" not in answer.text
    return dict(document)


@contextmanager
def listening(task: str) -> Iterator[str]:
    """The address of a promoted model's whole service, without Ray."""
    server = TaskServer(f"{task}@production")
    services = {task: ingress.Service(task, server)}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = uvicorn.Config(
            ingress.application(services), log_level="warning", lifespan="off"
        )
        running = uvicorn.Server(settings)
        thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        thread.join(10)
        server.close()
