"""Where work runs: the cluster a job was submitted to, or one of this machine's own."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aigc_ray import storage
from aigc_ray.errors import UserError

STORE_BYTES = 300_000_000  # of the object store; blocks in flight are bounded by it
# Of a private Ray. What gathers figures that nobody looks at, or watches for machines to be taken
# away, costs a tenth of a core, which on two cores is felt.
PRIVATE = {
    "RAY_USAGE_STATS_ENABLED": "0",  # else it reports its use to the internet
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_prestart_worker_first_driver": "0",
}


def cpus() -> int:
    """The cores that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def refuse_relative_home() -> None:
    """End a submitted job before it works, where its results would vanish with its folder."""
    try:
        storage.home()
    except UserError as fault:
        print(f"aigc-ray: {fault}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def session(cpus: int | None = None, *, logs: bool = False) -> Iterator[bool]:
    """Ray, for the length of a `with` block.

    Ray that runs already is used and left running; RAY_ADDRESS (set in every submitted job) is
    followed; else a private Ray of `cpus` cores starts on the loopback address and ends with the
    block: the block is told whether it is private. With `logs` what the workers print is repeated
    here, on stderr as well as stdout.
    """
    import ray

    if ray.is_initialized():
        yield False
        return
    quiet = {"log_to_driver": logs, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**quiet)
        except ConnectionError as error:
            address = os.environ["RAY_ADDRESS"]
            raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address!r}") from error
        try:
            yield False
        finally:
            ray.shutdown()
        return
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # Ray turns authentication on. With a token of this process's own it writes none into the
        # home directory, where one would turn it on for whatever Ray the user starts later.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    for name, value in PRIVATE.items():
        os.environ.setdefault(name, value)
    # A socket's path has at most 107 characters, of which Ray's own part takes about 60.
    short = "/tmp" if Path("/tmp").is_dir() else None
    folder = tempfile.mkdtemp(prefix="ray-", dir=short)
    try:
        ray.init(
            address="local",
            num_cpus=cpus or _cpus(),
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            **quiet,
        )
        yield True
    finally:
        ray.shutdown()
        _remove(Path(folder))


_cpus = cpus  # the parameter of `session` has the same name


def _remove(folder: Path) -> None:
    """Delete Ray's folder; its processes end a moment after `shutdown` and may still write."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
