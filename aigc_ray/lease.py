"""One job at a time in a run's folder.

The job that holds the lease writes into `lease.json` again and again. One that finds the file
watches it: as long as it changes somebody is at work, and where it stays as it is for PATIENCE
seconds its writer is gone and the lease is taken over. No clocks are compared. On one machine a
process that has ended is known at once.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from aigc_ray import storage
from aigc_ray.errors import UserError

EVERY = 10.0  # seconds between two signs of life
PATIENCE = 45.0  # seconds without one after which a job counts as gone

Lease = dict[str, str]  # its file, and who holds it: what a worker hands to `check`


@contextmanager
def held(run: str) -> Iterator[Lease]:
    """The lease of a run's folder, for the length of a `with` block.

    Raises:
        UserError: another job is at work in this folder.
    """
    lease = {"uri": storage.join(run, "lease.json"), "holder": uuid4().hex}
    _take(lease)
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(lease, stop), daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        stop.set()
        keeper.join()
        if _holder(lease["uri"])["holder"] == lease["holder"]:
            storage.delete(lease["uri"])


def check(lease: Lease) -> None:
    """Raise a `UserError` where another job has taken over, so that this one writes no more."""
    now = _holder(lease["uri"])
    if now["holder"] != lease["holder"]:
        raise UserError(f"{lease['uri']} was taken over by {now['who']}; this job ends")


def _holder(uri: str) -> dict[str, str]:
    try:
        found: dict[str, str] = storage.read_json(uri)
    except storage.Missing:  # deleted by hand, or by one who had taken over and is done
        found = {"holder": "", "who": "a job that has ended", "host": "", "process": ""}
    return found


def _sign(lease: Lease) -> bytes:
    """A sign of life: no two are equal."""
    host, process = platform.node(), str(os.getpid())
    who = f"process {process} of {getpass.getuser()} on {host}"
    facts = {"holder": lease["holder"], "who": who, "host": host, "process": process}
    return json.dumps(facts | {"sign": uuid4().hex}).encode()


def _take(lease: Lease) -> None:
    """Get the lease, after a wait where its last holder may be gone."""
    uri = lease["uri"]
    while True:
        try:
            return storage.create(uri, _sign(lease))
        except storage.Exists:
            pass
        try:
            data, tag = storage.read_tagged(uri)
            holder = json.loads(data)
            if not _ended(holder):
                _watch(uri, tag, holder["who"])
            return storage.replace(uri, _sign(lease), tag)
        except (storage.Missing, storage.Changed):  # given back, or taken over by a third
            continue


def _watch(uri: str, tag: str, who: str) -> None:
    """Return when the holder gave no sign for PATIENCE seconds."""
    print(f"{uri}: held by {who}; waiting for a sign of life", file=sys.stderr)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(EVERY / 10)
        if storage.read_tagged(uri)[1] != tag:
            run = storage.name(uri.rpartition("/")[0])
            raise UserError(
                f"{run} is under way ({who}): wait for it, or start another run with --fresh"
            )


def _ended(holder: dict[str, str]) -> bool:
    """Whether the holder is a process of this machine that is no more."""
    if holder["host"] != platform.node():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _keep(lease: Lease, stop: threading.Event) -> None:
    """Give signs of life until the block ends or somebody else has taken over."""
    while not stop.wait(EVERY):
        try:
            data, tag = storage.read_tagged(lease["uri"])
            if json.loads(data)["holder"] != lease["holder"]:
                return
            storage.replace(lease["uri"], _sign(lease), tag)
        except (storage.Missing, storage.Changed):
            return
        except (UserError, OSError):  # the store is away for a moment: so it is for the others
            continue
