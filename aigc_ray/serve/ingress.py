"""The one way in over HTTP: requests are read and checked here, and answered by the tasks.

Annotations stay real here, as in deployment.py.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Argument
from ray import serve
from ray.serve import Application
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from aigc_ray import __version__, registry, tables
from aigc_ray.errors import UserError
from aigc_ray.serve import openapi, security
from aigc_ray.serve.backend import Backend, Batcher, Remote
from aigc_ray.serve.problems import Problem, busy, down, internal

ITEMS = 64  # with a file in each of them, in a request
ROWS = 1000  # without
FILES = {"file", "image"}
EXPLAINED = 16  # items of a request whose answers are explained; each may take a second
GENERATING = 4  # requests at a time and task; each may take minutes
COLLECTED = 64 << 20  # bytes of samples in an answer that is not streamed
PAGE = Path(__file__).with_name("page")
LINES = "application/x-ndjson"


class Arguments(BaseModel):
    """The application's `args` in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid")

    tasks: list[str]
    batches: int = Argument(default=2, ge=1)  # in flight to a task: twice its replicas


class Service:
    """One task behind the ingress."""

    def __init__(self, task: str, backend: Backend, batches: int = 2) -> None:
        self.task, self.backend = task, backend
        self.batcher = Batcher(backend.predict_list, batches)
        self.generating = 0

    async def predict(self, items: list[Any]) -> dict[str, Any]:
        found = await self.batcher.ask(items)
        answers = found["answers"]
        if any("fault" in answer for answer in answers):
            raise internal()
        faults = [
            {"item": number, "field": answer["field"], "detail": answer["error"]}
            for number, answer in enumerate(answers)
            if "error" in answer
        ]
        if faults:
            first, several = faults[0], faults if len(faults) > 1 else None
            detail = f"item {first['item']}: {first['detail']}"
            raise Problem(422, detail, item=first["item"], field=first["field"], errors=several)
        return {"model": found["model"], "items": answers}

    async def generate(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """First the model, then samples; files in them as base64."""
        if self.generating >= GENERATING:
            raise busy(f"{self.task} is generating for {GENERATING} others; try again later", 10)
        self.generating += 1
        try:
            async with aclosing(self.backend.generate(request)) as stream:
                async for sample in stream:
                    if "error" in sample:
                        raise Problem(422, sample["error"], field=sample["field"])
                    yield {key: _text(value) for key, value in sample.items()}
        finally:
            self.generating -= 1


def _text(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def application(services: Mapping[str, Service], token: str | None = None) -> ASGIApp:
    """The whole of the HTTP side, apart from Serve."""
    app = FastAPI(
        title="aigc_ray",
        version=__version__,
        description="Generative adversarial AI for medicine. Research software, not a medical "
        "device. Errors are problem documents (RFC 9457).",
        docs_url=None,  # theirs loads its parts from the internet
        redoc_url=None,
    )
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_fault)

    def service(task: str) -> Service:
        if task not in services:
            known = ", ".join(services) or "none"
            raise Problem(404, f"{task} is not served here; served are: {known}")
        return services[task]

    @app.post("/v1/{task}/predict", openapi_extra=openapi.PREDICT, responses=openapi.PROBLEMS)
    async def predict(task: str, request: Request) -> Response:
        """What the task's model says about each item: at most 64 with files, or 1,000 without."""
        asked = service(task)
        return JSONResponse(await asked.predict(await _items(request)))

    @app.post("/v1/{task}/generate", openapi_extra=openapi.GENERATE, responses=openapi.PROBLEMS)
    async def generate(task: str, request: Request) -> Response:
        """Samples that the task's model makes; the same seed gives the same ones."""
        asked = service(task)
        samples = asked.generate(await _object(request))
        model = (await anext(samples))["model"]  # a refusal comes in its place
        if LINES in request.headers.get("accept", ""):
            return StreamingResponse(_lines(model, samples), media_type=LINES)
        return JSONResponse(await _collect(model, samples))

    @app.get("/v1/models")
    async def models() -> Response:
        """The registered versions, and what is served now."""
        listed, *serving = await asyncio.gather(
            asyncio.to_thread(registry.models), *(_describe(one) for one in services.values())
        )
        return JSONResponse({"models": listed, "serving": serving})

    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether this process lives."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", responses={503: openapi.PROBLEM})
    async def readyz() -> Response:
        """Whether every task answers."""
        found = await asyncio.gather(*(_describe(one) for one in services.values()))
        missing = {one["task"]: one["problem"]["detail"] for one in found if "problem" in one}
        if missing:
            raise Problem(503, "; ".join(missing.values()), tasks=list(missing))
        served = [{key: one[key] for key in ("task", "version", "sha256")} for one in found]
        return JSONResponse({"status": "ready", "serving": served})

    def page(path: str, name: str) -> None:
        async def send() -> Response:
            return FileResponse(PAGE / name, headers={"Cache-Control": "no-cache"})

        app.add_api_route(path, send, methods=["GET"], include_in_schema=False)

    page("/", "index.html")
    page("/docs", "docs.html")
    kinds = ("patient.js", "molecule.js", "sequence.js", "backbone.js", "protein.js")
    for name in ("page.js", *kinds, "docs.js", "page.css", "icon.svg"):
        page(f"/page/{name}", name)
    return security.Guard(app, token)


async def _describe(service: Service) -> dict[str, Any]:
    try:
        return await service.backend.describe()
    except Problem as refusal:
        return {"task": service.task, "problem": refusal.document()}
    except Exception:
        fault = down(service.task, "it fails; its log says where")
        return {"task": service.task, "problem": fault.document()}


async def _collect(
    model: dict[str, Any], samples: AsyncGenerator[dict[str, Any], None]
) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    shortfall: list[dict[str, Any]] = []
    size = 0
    async with aclosing(samples):
        async for sample in samples:
            if "shortfall" in sample:
                shortfall.append(sample["shortfall"])
                continue
            items.append(sample)
            size += sum(len(value) for value in sample.values() if isinstance(value, str))
            if size > COLLECTED:
                raise Problem(
                    422,
                    f"{len(items)} samples have {size >> 20} MiB already: ask for fewer, or for a "
                    f"stream with the header Accept: {LINES}",
                    field="n",
                )
    return {"model": model, "items": items, "shortfall": shortfall}


async def _lines(
    model: dict[str, Any], samples: AsyncGenerator[dict[str, Any], None]
) -> AsyncGenerator[bytes, None]:
    """One sample a line. If they break off, the last line is {"problem": …}: the status is sent."""
    try:
        async with aclosing(samples):
            async for sample in samples:
                yield _line({"model": model, **sample})
    except Problem as problem:
        yield _line({"problem": problem.document()})
    except Exception:
        yield _line({"problem": internal().document()})
        raise


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


# --- reading requests -----------------------------------------------------------------------


async def _items(request: Request) -> list[Any]:
    """A request's items: one a `file` part, or the list under "items".

    A `frame` part after a `file` part says which of the file's frames is meant. The rows of a table
    are items, one each.
    """
    if _media_type(request) == "multipart/form-data":
        return await _uploads(request)
    body = await _object(request)
    items = body.pop("items", None)
    if not isinstance(items, list):
        raise Problem(422, "items is a list with one object an item", field="items")
    explain = _explain(items, body.pop("explain", False))
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            detail = f"item {number}: an item is an object with named fields"
            raise Problem(422, detail, item=number, field="items")
    # What stands beside the items is meant for each of them, unless it says otherwise.
    items = [body | item for item in items]
    return [item | {"explain": True} for item in items] if explain else items


def _explain(items: list[Any], explain: Any, field: str = "items") -> bool:
    """Whether answers are to be explained, once the number of items is found right."""
    count = len(items)
    files = any(isinstance(item, dict) and FILES & item.keys() for item in items)
    most, which = (ITEMS, "items with files") if files else (ROWS, "items")
    if not 1 <= count <= most:
        raise Problem(422, f"a request has 1 to {most} {which}; got {count}", field=field)
    words = {"true": True, "false": False}
    wanted = words.get(explain, explain) if isinstance(explain, str) else explain
    if not isinstance(wanted, bool):
        raise Problem(422, "explain is true or false", field="explain")
    if wanted and count > EXPLAINED:
        detail = f"explain is for at most {EXPLAINED} items in a request; got {count}"
        raise Problem(422, detail, field="explain")
    return wanted


async def _object(request: Request) -> dict[str, Any]:
    """A JSON object."""
    kind = _media_type(request)
    if kind != "application/json" and not kind.endswith("+json"):
        raise Problem(415, f"this is read as application/json; got {kind or 'no Content-Type'}")
    data = await request.body()
    try:
        if len(data) > 1 << 20:  # as long as that takes others are answered
            body = await asyncio.to_thread(_parse, data)
        else:
            body = _parse(data)
    except (ValueError, RecursionError) as error:
        # Of our making or json's: a position, none of the text. Deep nesting ends in recursion.
        where = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise Problem(400, f"the body is not JSON: {where}") from None
    if not isinstance(body, dict):
        raise Problem(422, f"the body is a JSON object; got {type(body).__name__}")
    return body


def _parse(data: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise json.JSONDecodeError(f"{constant} is not JSON", "", 0)

    return json.loads(data, parse_constant=refuse)


class _Uploads(MultiPartParser):
    spool_max_size = security.BODY_BYTES  # uploads never touch the disk


async def _uploads(request: Request) -> list[Any]:
    try:
        parser = _Uploads(
            request.headers, request.stream(), max_files=2 * ITEMS, max_fields=ITEMS + 8
        )
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Problem(422, f"a request has 1 to {ITEMS} file parts", field="file") from None
        raise Problem(400, f"the body is not multipart/form-data: {error.message}") from None
    except KeyError:
        raise Problem(400, "Content-Type: multipart/form-data lacks its boundary") from None
    items: list[Any] = []
    explain: Any = False
    shared: dict[str, Any] = {}
    try:
        for name, part in form.multi_items():
            if name == "file" and isinstance(part, UploadFile):
                items += await _upload(await part.read(), part.filename or "file")
            elif name == "frame" and items:  # it belongs to the file before it
                text = str(part)
                items[-1]["frame"] = int(text) if text.isdecimal() and len(text) < 10 else text
            elif name == "explain":
                explain = part
            elif isinstance(part, str):  # for every item, as what stands beside them in JSON
                shared[name] = part
            else:
                detail = f"{name} is not known here; a form's parts with a file are called file"
                raise Problem(422, detail, field=name)
    finally:
        await form.close()
    items = [shared | item for item in items]
    if _explain(items, explain, "file"):
        return [item | {"explain": True} for item in items]
    return items


async def _upload(content: bytes, name: str) -> list[Any]:
    """A file as an item, or the rows of a table as items."""
    if not tables.is_upload(name):
        return [{"file": content, "filename": name}]
    try:
        return list(await asyncio.to_thread(tables.parse, content, name, ROWS))
    except UserError as error:
        raise Problem(422, str(error), field="file") from None


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


# --- refusals ---------------------------------------------------------------------------------


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _answer_http(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    words = {
        404: f"there is nothing at {request.url.path}; /docs lists what there is",
        405: f"{request.method} is not allowed here; allowed: {headers.get('Allow', 'see /docs')}",
    }
    detail = words.get(error.status_code, str(error.detail))
    return Problem(error.status_code, detail, headers=headers).response()


async def _answer_fault(request: Request, error: Exception) -> Response:
    return internal().response()  # `Guard` logs it


# --- the application ----------------------------------------------------------------------------


@serve.deployment(
    name="Ingress",
    max_ongoing_requests=1000,  # beyond our own bounds, which answer 429 as a problem document
    ray_actor_options={"num_cpus": 0.25},
    health_check_timeout_s=60,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=20,
    logging_config={"enable_access_log": False},
)
@serve.ingress()
class Ingress:
    """The deployment: it reads the token where it runs, so no configuration holds it."""

    def __init__(self, tasks: list[str], batches: int) -> None:
        self.services = {task: Service(task, Remote(task), batches) for task in tasks}

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return application(self.services, security.token())


def build(args: Arguments) -> Application:
    """The ingress application for these tasks' applications."""
    deployment: Any = Ingress
    bound: Application = deployment.bind(args.tasks, args.batches)
    return bound
