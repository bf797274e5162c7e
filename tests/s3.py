"""Stores for the tests: an S3 that works (moto, over HTTP), and one that fails as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

BUCKET = "aigc-test"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an empty bucket; the AWS variables point at its server until the end."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        use(patch, f"http://{host}:{port}")
        import boto3

        boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


def use(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let the AWS variables name this store, and nothing of the machine's own settings."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    for name, value in variables.items():
        patch.setenv(name, value)


class Faulty:
    """A store with one object, `data`, that fails the first `failures` requests."""

    def __init__(self, status: int, code: str, failures: float, data: bytes = b"data") -> None:
        self.status, self.code, self.failures, self.data = status, code, failures, data
        self.requests = count(1)
        self.seen = 0
        self.endpoint = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        sent = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.seen = next(self.requests)
        if self.seen <= self.failures:
            return self.fail(handler)
        if handler.command == "PUT":
            self.data = sent
            return self.reply(handler, 200, b"")
        return self.reply(handler, 200, self.data)

    def fail(self, handler: BaseHTTPRequestHandler) -> None:
        if self.code == "reset":
            handler.close_connection = True
            handler.connection.close()
        elif self.code == "cut":  # the body ends before its announced end
            handler.close_connection = True
            self.reply(handler, 200, self.data, extra=10)
        else:
            xml = f"<Error><Code>{self.code}</Code><Message>told to fail</Message></Error>"
            self.reply(handler, self.status, xml.encode())

    def reply(
        self, handler: BaseHTTPRequestHandler, status: int, body: bytes, extra: int = 0
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) + extra))
        handler.send_header("ETag", '"tag"')
        handler.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


@contextmanager
def serving(store: Faulty) -> Iterator[Faulty]:
    """The store on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            store.answer(self)

        do_PUT = do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def finish(self) -> None:
            if not self.connection._closed:
                super().finish()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        store.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield store
        server.shutdown()
        thread.join()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """An empty address of its own for a test that holds for both kinds of store."""
    if request.param == "local":
        return str(tmp_path / "place")
    return f"{request.getfixturevalue('s3')}/{uuid4().hex}"
