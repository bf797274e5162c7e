"""What every test starts from: a home of its own, quiet and bounded libraries."""

from __future__ import annotations

import contextlib
import os

# Before torch and Ray are imported: workers inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", ".5")

import pytest

from tests.s3 import s3  # noqa: F401  a fixture


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Runs, models and data of a test lie in its own folder."""
    where = tmp_path / "home"
    monkeypatch.setenv("AIGC_HOME", str(where))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AIGC_DATA_MIRROR", raising=False)
    return where


@pytest.fixture
def free_port():
    """A port that was free a moment ago, and that no process is given which asks for any: Ray's
    many would take it before a long test comes to use it."""
    import random
    import socket

    while True:
        port = random.SystemRandom().randrange(21_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="module")
def ray():
    """One Ray for a module: its processes keep the environment that they started with."""
    from aigc_ray.cluster import session

    with session(cpus=8):
        yield
