"""Serving on this machine: a Ray of its own, the tasks' applications and the ingress."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

from aigc_ray import registry
from aigc_ray.cluster import cpus, session
from aigc_ray.errors import UserError
from aigc_ray.tasks import TASKS

logger = logging.getLogger(__name__)

ALIAS = "production"
KINDS = (signal.SIGINT, signal.SIGTERM)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
REQUEST_SECONDS = 3600.0  # of a whole answer; a long generation streams for minutes


def promoted() -> dict[str, str]:
    """The tasks that have a model under the production alias, with its name."""
    found = {one["task"] for one in registry.models() if ALIAS in one["aliases"]}
    return {task: f"{task}@{ALIAS}" for task in TASKS if task in found}


def run(
    models: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    block: bool = True,
    poll_seconds: float = 5.0,
) -> Callable[[], None]:
    """Serve models, by task; by default every task's that is promoted to production.

    With `block` it returns after SIGINT or SIGTERM, when all has ended. Otherwise it returns once
    requests are answered; what it returns stops the service.
    """
    models = promoted() if models is None else models
    if not models:
        raise UserError(
            f"no model is promoted to {ALIAS}: train one, then promote it with "
            "`aigc-ray models promote TASK:VERSION`"
        )
    for name in models.values():
        registry.show(name)  # a wrong name fails here, before Ray starts
    _free(host, port)
    with ExitStack() as stack:
        signals = stack.enter_context(_Signals()) if block else None
        stack.enter_context(session(max(2, cpus())))
        if signals:
            signals.listen()  # again: Ray has set its own
        stack.callback(_withdraw, ["ingress", *models])
        _deploy(models, host, port, poll_seconds)
        if signals:
            named, place = ", ".join(models.values()), f"[{host}]" if ":" in host else host
            print(f"{named}: http://{place}:{port} (Ctrl-C ends it)", file=sys.stderr, flush=True)
            signals.ended.wait()
            return lambda: None
        return stack.pop_all().close
    raise AssertionError("unreachable")


def _deploy(models: dict[str, str], host: str, port: int, poll_seconds: float) -> None:
    from ray import serve

    from aigc_ray.serve import deployment, ingress, security

    if host not in LOOPBACK and security.token() is None:
        logger.warning(f"{host}:{port} answers anyone who reaches it: set AIGC_TOKEN")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet: Any = {"enable_access_log": False, "log_level": "WARNING"}
    http = {"host": host, "port": port, "request_timeout_s": REQUEST_SECONDS}
    serve.start(http_options=http, logging_config=quiet)
    for task, name in models.items():
        arguments = deployment.Arguments(model=name, poll_seconds=poll_seconds)
        serve.run(deployment.build(arguments), name=task, route_prefix=None)
    serve.run(ingress.build(ingress.Arguments(tasks=list(models))), name="ingress")


def _withdraw(names: list[str]) -> None:
    """End our applications once their requests are answered; the rest of Serve ends with Ray.

    Not `serve.shutdown`: it would take down the applications of others on a shared cluster.
    """
    from ray import serve

    for name in names:
        serve.delete(name)


def _free(host: str, port: int) -> None:
    """Refuse a port that is taken now: Serve would only tell its log."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be served on: {error.strerror}") from None


class _Signals:
    """An event that SIGINT and SIGTERM set, in place of ending the process at once."""

    def __enter__(self) -> _Signals:
        self.ended = threading.Event()
        self.before = {kind: signal.getsignal(kind) for kind in KINDS}
        self.listen()
        return self

    def listen(self) -> None:
        for kind in KINDS:
            signal.signal(kind, self._end)

    def __exit__(self, *fault: object) -> None:
        for kind, handler in self.before.items():
            signal.signal(kind, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.ended.is_set():  # the second time: at once
            raise KeyboardInterrupt
        self.ended.set()
