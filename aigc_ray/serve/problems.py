"""Refusals as RFC 9457 problem documents: what a client is told when a request is not answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818  an RFC's word, which `raise Problem` reads well with
    """A request that is refused: raised wherever that is found, answered as a document.

    Args:
        status: of the HTTP answer.
        detail: one sentence, for the person who made the request.
        headers: of the answer, e.g. Retry-After.
        members: further members of the document, e.g. `item` and `field`; None is left out.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})
        self.members = {name: value for name, value in members.items() if value is not None}

    def document(self) -> dict[str, Any]:
        title = HTTPStatus(self.status).phrase
        named = {"type": "about:blank", "title": title, "status": self.status}
        return {**named, "detail": self.detail, **self.members}

    def response(self) -> Response:
        body = json.dumps(self.document()).encode()
        return Response(body, self.status, self.headers, media_type=MEDIA_TYPE)


def busy(detail: str, seconds: int = 1) -> Problem:
    return Problem(429, detail, headers={"Retry-After": str(seconds)})


def down(task: str, why: str, seconds: int = 5) -> Problem:
    detail = f"{task} is not available now: {why}"
    return Problem(503, detail, headers={"Retry-After": str(seconds)}, task=task)


def internal() -> Problem:
    return Problem(500, "the service failed on this request; its log says where")
