"""Two jobs never write into one run's folder."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aigc_ray import lease, storage
from aigc_ray.errors import UserError
from aigc_ray.train import train
from tests.s3 import place  # noqa: F401  a fixture
from tests.tiny import TINY, ingested

OTHER = {"holder": "another", "who": "process 7 of ann on node-3", "host": "node-3", "process": "7"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "EVERY", 0.1)
    monkeypatch.setattr(lease, "PATIENCE", 1.0)


@pytest.fixture
def run(place):  # noqa: F811
    return storage.join(place, "runs", "diagnosis-0123abcd-1")


def left_behind(run: str, **facts: str) -> None:
    """The lease of a job that is gone."""
    storage.create(storage.join(run, "lease.json"), json.dumps(OTHER | facts).encode())


def test_a_second_job_is_refused_by_the_name_of_the_first(run):
    with (
        lease.held(run) as first,
        pytest.raises(UserError, match=r"diagnosis-0123abcd-1 is under way \(process \d+ of "),
        lease.held(run),
    ):
        pass
    lease_file = storage.join(run, "lease.json")
    assert not storage.exists(lease_file)
    with lease.held(run) as second:
        assert second["holder"] != first["holder"]
        lease.check(second)


def test_a_job_that_gives_no_sign_is_gone(run):
    left_behind(run)
    began = time.monotonic()
    with lease.held(run) as mine:
        assert time.monotonic() - began >= lease.PATIENCE
        lease.check(mine)
        with pytest.raises(UserError, match="was taken over by process"):
            lease.check({**mine, "holder": OTHER["holder"]})


def test_a_process_of_this_machine_that_ended_is_known_at_once(run, monkeypatch):
    import platform

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left_behind(run, host=platform.node(), process=str(gone.pid))
    monkeypatch.setattr(lease, "PATIENCE", 1e6)
    with lease.held(run) as mine:
        lease.check(mine)


def test_of_many_jobs_that_start_together_one_gets_the_run(run):
    left_behind(run)
    working, refused = [], []

    def job() -> None:
        try:
            with lease.held(run):
                working.append(1)
                time.sleep(2.5)
        except UserError as fault:
            refused.append(str(fault))

    jobs = [threading.Thread(target=job) for _ in range(4)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert (len(working), len(refused)) == (1, 3), refused


def test_a_training_that_was_taken_over_writes_no_more_checkpoints(tmp_path, home: Path):
    data = ingested(tmp_path)
    thread = threading.Thread(target=take_over, args=(home,))
    thread.start()
    with pytest.raises(UserError, match=r"taken over by process 7 of ann on node-3; this job ends"):
        train("diagnosis", data, TINY | {"num_workers": 0, "checkpoint_every": 1, "steps": 10_000})
    thread.join()
    assert next(home.glob("runs/*/lease.json")).exists()  # the other's


def take_over(home: Path) -> None:
    """What another job does that found this one silent."""
    until = time.monotonic() + 60
    # Not what is inside of them: older ones are deleted meanwhile.
    while not list(home.glob("runs/*/checkpoints/*")) and time.monotonic() < until:
        time.sleep(0.02)
    storage.write_json(str(next(home.glob("runs/*/lease.json"))), OTHER)
