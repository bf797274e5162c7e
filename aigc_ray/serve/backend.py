"""How the ingress reaches the tasks' applications: one handle call for many requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from aigc_ray.serve.problems import Problem, busy, down

BATCH = 16  # items in a call; more did not make an item cheaper
WAIT_SECONDS = 0.004  # for more requests before a batch that is not full leaves
WAITING = 512  # items that may wait for the model; beyond, clients are asked to come back
PREDICT_SECONDS = 60.0  # for a batch, a dead replica's replacement included
DESCRIBE_SECONDS = 3.0
ITEM_SECONDS = 120.0  # for the next generated sample

Answers = dict[str, Any]  # {"model": …, "answers": [one an item]}


class Backend(Protocol):
    """A task as the ingress sees it: `TaskServer`'s methods, near or far."""

    async def describe(self) -> dict[str, Any]: ...

    async def predict_list(self, items: list[Any]) -> Answers: ...

    def generate(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]: ...


class Remote:
    """A task's own application, reached by its handle."""

    def __init__(self, task: str) -> None:
        self.task = task
        self._handle: Any = None

    async def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._call("describe", seconds=DESCRIBE_SECONDS)
        return found

    async def predict_list(self, items: list[Any]) -> Answers:
        answers: Answers = await self._call("predict_list", items, seconds=PREDICT_SECONDS)
        return answers

    async def generate(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        handle = (await self._application()).options(stream=True)
        stream = handle.generate.remote(request)
        try:
            while True:
                try:
                    yield await asyncio.wait_for(anext(stream), ITEM_SECONDS)
                except StopAsyncIteration:
                    return
                except Exception as error:
                    raise self._problem(error) from error
        finally:
            stream.cancel()  # a client that left wants no more samples; no effect on a finished one

    async def _application(self) -> Any:
        if self._handle is None:
            try:  # asks the controller, so not on the event loop
                self._handle = await asyncio.to_thread(serve.get_app_handle, self.task)
            except RayServeException:
                raise down(self.task, "it is not deployed") from None
        return self._handle

    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        """An answer; a replica that died is asked no more, its successor once."""
        handle = await self._application()
        for last in (False, True):
            response = getattr(handle, method).remote(*arguments)
            try:
                return await asyncio.wait_for(response, seconds)
            except Exception as error:
                if isinstance(error, TimeoutError):
                    response.cancel()
                if last or not isinstance(error, (RayActorError, ReplicaUnavailableError)):
                    raise self._problem(error) from error

    def _problem(self, error: Exception) -> Exception:
        if isinstance(error, TimeoutError):
            return down(self.task, "it does not answer in time")
        if isinstance(error, DeploymentUnavailableError):
            return down(self.task, "it is not deployed or could not start; see `serve status`")
        if isinstance(error, (RayActorError, ReplicaUnavailableError)):
            return down(self.task, "it ended while it answered")
        if isinstance(error, BackPressureError):
            return busy(f"{self.task} has too many requests waiting")
        return error


class _Waiting(NamedTuple):
    items: list[Any]
    answer: asyncio.Future[Answers]


class Batcher:
    """Gathers requests while the model computes, so that one call carries many of them.

    `serve.batch` would do, but for three things: it shares one queue between the tasks, it splits
    a request of many items between two versions of a model, and its queue has no end. A request
    is never split: one of more items than `BATCH` has a call to itself.
    """

    def __init__(self, call: Callable[[list[Any]], Awaitable[Answers]], in_flight: int = 2) -> None:
        self._call, self._in_flight = call, in_flight
        self._queue: deque[_Waiting] = deque()
        self._waiting = 0  # items in the queue
        self._arrived = asyncio.Event()
        self._gathering = asyncio.Lock()
        self._workers: list[asyncio.Task[None]] = []

    async def ask(self, items: list[Any]) -> Answers:
        """The answers to these items, all from the same version of the model."""
        if self._waiting and self._waiting + len(items) > WAITING:
            raise busy(f"{self._waiting} items wait already; send these again in a moment")
        if not self._workers:
            self._workers = [asyncio.create_task(self._work()) for _ in range(self._in_flight)]
        waiting = _Waiting(items, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._waiting += len(items)
        self._arrived.set()
        return await waiting.answer

    async def _work(self) -> None:
        while True:
            async with self._gathering:
                while not self._queue:
                    self._arrived.clear()
                    await self._arrived.wait()
                if self._waiting < BATCH:
                    await asyncio.sleep(WAIT_SECONDS)
                batch = self._take()
            if batch:
                await self._send(batch)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].items) <= BATCH):
            waiting = self._queue.popleft()
            self._waiting -= len(waiting.items)
            if not waiting.answer.cancelled():  # else its client has left
                batch.append(waiting)
                size += len(waiting.items)
        return batch

    async def _send(self, batch: list[_Waiting]) -> None:
        try:
            found = await self._call([item for waiting in batch for item in waiting.items])
        except Exception as error:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(_copy(error))
            return
        start = 0
        for waiting in batch:
            end = start + len(waiting.items)
            if not waiting.answer.done():
                waiting.answer.set_result({**found, "answers": found["answers"][start:end]})
            start = end


def _copy(error: Exception) -> Exception:
    """Each request raises its own: tracebacks are written into the exception."""
    if isinstance(error, Problem):
        return Problem(error.status, error.detail, headers=error.headers, **error.members)
    return error
