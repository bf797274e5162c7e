"""What every request passes on its way in, and every answer on its way out.

With AIGC_TOKEN set, a client shows it as `Authorization: Bearer …`; the page itself and the health
checks are open, the page asks a person for the token. Nothing of a request's body is ever logged.
"""

from __future__ import annotations

import hmac
import logging
import os
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aigc_ray.serve.problems import Problem, busy, internal

logger = logging.getLogger("ray.serve")

BODY_BYTES = 64 << 20  # of one request
HELD_BYTES = 512 << 20  # of the requests that are answered at the same time
OPEN = {"/", "/healthz", "/readyz", "/docs", "/openapi.json", "/favicon.ico"}
OPEN_PREFIX = "/page/"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def token() -> str | None:
    """The token that clients must show; None where there is none to show."""
    return os.environ.get("AIGC_TOKEN", "").strip() or None


class Guard:
    """Pure ASGI around the application: token, size of the body, headers, faults."""

    def __init__(self, app: ASGIApp, token: str | None = None, limit: int = BODY_BYTES) -> None:
        self.app, self.token, self.limit = app, token, limit
        self.held = 0  # bytes of bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = finished = False
        body = _Body(self, receive)

        async def answer(message: Message) -> None:
            nonlocal started, finished
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)
            finished = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            self._authorize(scope)
            announced = Headers(scope=scope).get("content-length", "")
            if announced.isdecimal() and int(announced) > self.limit:
                raise self.too_large()
            await self.app(scope, body.receive, answer)
        except Problem as problem:
            await problem.response()(scope, receive, answer)
        except Exception as error:
            _log(scope, error)
            if not started:
                await internal().response()(scope, receive, answer)
            elif not finished:  # too late for another status: a broken connection tells the client
                raise RuntimeError("an answer broke off") from None
        finally:
            self.held -= body.read

    def too_large(self) -> Problem:
        most = f"{self.limit >> 20} MiB"
        return Problem(413, f"a request has {most} at most; send several smaller ones")

    def _authorize(self, scope: Scope) -> None:
        path = scope["path"]
        if self.token is None or path in OPEN or path.startswith(OPEN_PREFIX):
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Of bytes and in constant time: how long a refusal takes tells nothing about the token.
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if scheme.lower() != "bearer" or not same:
            raise Problem(
                401,
                "this service wants a token: send the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )


class _Body:
    """A request's body, counted as it comes, whatever its Content-Length says."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self.guard, self._receive = guard, receive
        self.read = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            length = len(message.get("body", b""))
            self.read += length
            self.guard.held += length
            if self.read > self.guard.limit:
                raise self.guard.too_large()
            if self.guard.held > HELD_BYTES:
                raise busy("the service holds as many uploads as it can; try again in a moment", 5)
        return message


def _log(scope: Scope, error: BaseException) -> None:
    """Where it failed, without the message, which may hold a patient's data."""
    places: list[str] = []
    trace: Any = error.__traceback__
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    path = " > ".join(places[-6:])
    route = getattr(scope.get("route"), "path", "?")
    logger.error(f"{scope['method']} {route} failed: {type(error).__name__} at {path}")
