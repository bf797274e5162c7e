"""A training is the same for any number of workers, and loses nothing when it is killed."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from aigc_ray import assess, checkpoint, fidelity, lease, registry, runs, storage, worker
from aigc_ray.adversary import Adversary
from aigc_ray.errors import UserError
from aigc_ray.ingest import ingest
from aigc_ray.model import Model
from aigc_ray.tasks.diagnosis.task import Diagnosis
from aigc_ray.train import CLEANER, NO_DATA_SETS, configure, job_of, train
from tests import tiny
from tests.tiny import ingested

# Rounding grows with the rate, and two workers are compared with one.
TINY = tiny.TINY | {"adversary_rate": 5e-5}


def weights(summary: dict) -> dict[str, torch.Tensor]:
    return load_file(str(registry.fetch(summary["model"]) / "weights.safetensors"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def wait_for(condition, seconds: float = 90.0):
    """What `condition` returns as soon as it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"it did not happen within {seconds} s")


def last_checkpoint(home: Path) -> int:
    """The step of the newest whole checkpoint in a home with one run."""
    found = [int(p.parent.name[:9]) for p in home.glob("runs/*/checkpoints/*/MANIFEST.json")]
    return max(found, default=0)


# --- what a training leaves -------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ingested(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The run that nothing disturbs: 50 steps in this process."""
    home = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(home))
        patch.setattr("aigc_ray.worker.DRAW_EVERY", 0.0)
        summary = train("diagnosis", data, TINY | {"num_workers": 0})
        return summary | {"weights": weights(summary)}


def test_a_training_leaves_a_model_a_report_samples_and_figures(alone):
    run = Path(alone["uri"])
    assert set(alone["metrics"]) == {"val", "test"}
    # The generator started from the training images: 50 steps at 5e-5 move a weight by .0025.
    assert alone["weights"]["0.generator.components.mean"].abs().max() > 1
    assert 0 <= alone["metrics"]["test"]["auc"] <= 1
    report = (run / "report.html").read_text()
    assert "not a medical device" in report and "phantoms" in report
    assert "src='http" not in report and "<script" not in report  # opens offline
    assert [p.name for p in sorted(run.glob("samples/*"))] == [
        "step-0000025.png",
        "step-0000050.png",
    ]
    progress = json.loads((run / "progress.json").read_text())
    assert [entry["step"] for entry in progress["history"]] == [25, 50]
    assert progress["now"]["rows_per_second"] > 0


def test_the_same_command_returns_a_finished_run_and_fresh_starts_another(data, home):
    settings = TINY | {"num_workers": 0, "steps": 3}
    first = train("diagnosis", data, settings)
    assert train("diagnosis", data, settings) == first
    again = train("diagnosis", data, settings, fresh=True)
    assert again["run"].endswith("-2") and again["model"] == "diagnosis:2"
    assert same(weights(again), weights(first))
    assert [run["state"] for run in runs.listed()] == ["done", "done"]
    assert runs.show(first["run"])["result"] == first
    assert runs.prune(1)["deleted"] == [first["run"]]
    with pytest.raises(UserError, match="no run"):
        runs.show(first["run"])
    assert registry.fetch("diagnosis:1").exists()  # models outlive their runs


def test_the_served_weights_give_the_samples_of_the_training(alone, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(Path(alone["uri"]).parents[1]))
        model = Model.open(registry.fetch(alone["model"]))
    adversary = Adversary(model.task, seed=7)
    assert checkpoint.load(storage.join(alone["uri"], "checkpoints"), adversary) is not None
    trained = Model(model.task, [adversary.average], {})
    assert model.generate(n=4, seed=3) == trained.generate(n=4, seed=3)


def test_only_a_sweeps_workers_report_to_ray(data, home, monkeypatch):
    """Outside of Ray Train its report raises: one who is not of a sweep does not call it."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of this whole process
    settings = TINY | {"steps": 2, "validate_every": 1, "num_workers": 1}
    training, facts = configure("diagnosis", data, settings)
    uri = str(home / "runs" / "alone")
    with lease.held(uri) as held:
        job = job_of(training, facts, data, uri) | {"lease": held}
        worker.work(job)
        assert storage.children(storage.join(uri, "checkpoints"))
        with pytest.raises(RuntimeError):
            worker.work(
                job_of(training, facts, data, f"{uri}-2") | {"lease": held, "concurrent": 1}
            )


def test_fine_tuning_starts_from_the_model(alone, data, monkeypatch):
    monkeypatch.setenv("AIGC_HOME", str(Path(alone["uri"]).parents[1]))
    few = TINY | {"num_workers": 0, "steps": 1, "init": alone["model"], "adversary_rate": 1e-9}
    tuned = weights(train("diagnosis", data, few))
    near = [name for name in tuned if name.startswith(("0.generator", "0.critic"))]
    assert all(torch.allclose(tuned[name], alone["weights"][name], atol=1e-6) for name in near)


def test_fine_tuning_takes_the_recogniser_of_real_rows_and_refuses_another_form(
    alone, data, monkeypatch
):
    monkeypatch.setenv("AIGC_HOME", str(Path(alone["uri"]).parents[1]))
    model = Model.open(registry.fetch(alone["model"]))
    model.info["generated_rows"] = {"heard": True, "gain": None}
    other = {key: value + 1 for key, value in model.members[0]["recogniser"].state_dict().items()}
    (member,) = model.members
    member["beside"] = copy.deepcopy(member["recogniser"])
    member["beside"].load_state_dict(other)
    monkeypatch.setattr(worker.models.Model, "open", lambda folder: model)
    adversary = Adversary(model.task, seed=1)
    worker._fine_tune(adversary, alone["model"])
    assert same(dict(adversary.average["recogniser"].state_dict()), other)
    wider = Adversary(replace(model.task, width=1.0), seed=1)
    with pytest.raises(UserError, match=r"another form.* task\.width"):
        worker._fine_tune(wider, alone["model"])


def test_several_labels_in_colour_go_the_whole_way(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 48), ("val", 24), ("test", 24)):
        flags = random.integers(0, 2, (count, 3), dtype=np.uint8)
        pixels = random.integers(0, 60, (count, 28, 28, 3), dtype=np.uint8)
        pixels += 180 * flags[:, None, None, :]  # each label is a colour
        arrays |= {f"{part}_images": pixels, f"{part}_labels": flags}
    np.savez(tmp_path / "colours.npz", **arrays)
    ingest(Diagnosis(), str(tmp_path / "colours.npz"), str(tmp_path / "data"))
    few = TINY | {"num_workers": 0, "batch_size": 24, "validate_every": 50}
    summary = train("diagnosis", str(tmp_path / "data"), few)
    assert summary["metrics"]["test"]["auc"] > 0.9
    model = Model.open(registry.fetch(summary["model"]))
    (item,) = model.generate(n=1, seed=0, **{"class": ["0", "2"]})
    assert item["class"] == ["0", "2"]
    (answer,) = model.predict([{"file": item["image"]}])
    assert answer["probabilities"].keys() == {"0", "1", "2"}


def test_images_of_256_pixels_go_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.setattr(fidelity, "GENERATED", 50)  # large images take their time
    monkeypatch.setattr(assess, "EXPLAINED", 2)
    large = ingested(tmp_path, train=16, val=8, size=256)
    few = TINY | {"num_workers": 0, "batch_size": 8, "steps": 2, "validate_every": 2}
    summary = train("diagnosis", large, few)
    model = Model.open(registry.fetch(summary["model"]))
    (item,) = model.generate(n=1, seed=0)
    assert Image.open(BytesIO(item["image"])).size == (256, 256)
    (answer,) = model.predict([{"file": item["image"]}])
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


# --- workers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory, ray):
    """The same run on two workers."""
    home = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(home))
        summary = train("diagnosis", data, TINY | {"num_workers": 2})
        return summary | {"weights": weights(summary)}


def test_two_workers_with_half_the_rows_equal_one_with_all(alone, pair):
    """The adversarial networks; the recogniser's batch statistics are each worker's own."""
    one, two = alone["weights"], pair["weights"]
    names = [name for name in one if name.startswith(("0.generator", "0.critic"))]
    start = Adversary(_tiny_task(alone), seed=0).averaged()
    moved = max(float((one[name] - start[name[2:]]).abs().max()) for name in names)
    apart = max(float((one[name] - two[name]).abs().max()) for name in names)
    assert moved > 1e-3 and apart < 1e-5


def _tiny_task(summary) -> Diagnosis:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(Path(summary["uri"]).parents[1]))
        return Model.open(registry.fetch(summary["model"])).task


def test_a_killed_worker_costs_time_and_nothing_else(data, pair, ray, home):
    killed = []

    def kill():
        wait_for(lambda: last_checkpoint(home) >= 20)
        workers = [
            process
            for process in psutil.process_iter(["cmdline", "ppid"])
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
            and os.getpid() in {parent.pid for parent in process.parents()}
        ]
        killed.append(workers[-1].pid)
        workers[-1].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    # Slow enough to be hit: a sample grid and a checkpoint every few steps.
    summary = train("diagnosis", data, TINY | {"num_workers": 2, "checkpoint_every": 10})
    killer.join()
    assert killed
    assert len(list(Path(summary["uri"]).glob("ray/start-*"))) == 2  # it did start again
    assert same(weights(summary), pair["weights"])


def test_a_killed_job_is_taken_up_by_the_same_command_bit_for_bit(data, alone, home):
    settings = [f"{key}={value}" for key, value in (TINY | {"checkpoint_every": 10}).items()]
    command = [sys.executable, "-m", "aigc_ray", "train", "diagnosis", "--data", data]
    command += [*settings, "num_workers=0", "--json"]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: last_checkpoint(home) >= 10)
    job.kill()
    assert job.wait() == -signal.SIGKILL
    stopped = last_checkpoint(home)
    assert 10 <= stopped < 50
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["run"].endswith("-1")  # the same run
    assert same(weights(summary), alone["weights"])


# --- faults -----------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(data, alone, home):
    settings = TINY | {"num_workers": 0, "checkpoint_every": 10}
    summary = train("diagnosis", data, settings)
    run = Path(summary["uri"])
    (run / "summary.json").unlink()  # as if it had been killed at the very end
    newest = max(run.glob("checkpoints/*"))
    file = newest / "training.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    adversary = Adversary(_tiny_task(summary), seed=1)
    assert checkpoint.load(str(run / "checkpoints"), adversary) is not None
    assert adversary.step_number == 40
    again = train("diagnosis", data, settings)
    assert same(weights(again), alone["weights"])
    for folder in run.glob("checkpoints/*"):
        (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"no whole checkpoint .*state\.json.*--fresh"):
        checkpoint.load(str(run / "checkpoints"), adversary)


def test_a_full_disk_while_saving_leaves_the_earlier_checkpoint(data, alone, home, monkeypatch):
    settings = TINY | {"num_workers": 0, "checkpoint_every": 10}
    write = storage.upload

    def full(folder, uri, last="MANIFEST.json"):
        if last_checkpoint(home) >= 20:
            raise OSError(errno.ENOSPC, f"no space is left for {uri}")
        write(folder, uri, last)

    monkeypatch.setattr(storage, "upload", full)
    with pytest.raises(OSError, match="no space is left"):
        train("diagnosis", data, settings)
    assert last_checkpoint(home) == 20
    monkeypatch.undo()
    monkeypatch.setenv("AIGC_HOME", str(home))
    assert same(weights(train("diagnosis", data, settings)), alone["weights"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 4096}, r"training split has \d+ rows, fewer than batch_size=4096"),
        ({"batch_size": 15, "num_workers": 2}, "batch_size=15 is not a multiple of num_workers=2"),
        ({"stepps": 3}, r"no setting 'stepps'; did you mean steps\?"),
        ({"loss": "hinge"}, "loss is one of relativistic, classic; got 'hinge'"),
        ({"steps": "many"}, "steps is a whole number; got 'many'"),
        ({"network": "classic", "penalty": 1.0}, "excludes gradient penalties"),
        ({"positive": "flu"}, "positive is one of without lesion, with lesion; got 'flu'"),
        ({"sensitivity": "none"}, "sensitivity or cost is needed"),
        ({"recogniser_width": 8}, "recogniser_width is at least 16; got 8"),
        ({"validate_every": 0}, "validate_every is at least 1; got 0"),
        ({"init": "diagnosis@production"}, "diagnosis"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(data, settings, sentence):
    with pytest.raises(UserError, match=sentence) as fault:
        train("diagnosis", data, settings)
    assert "\n" not in str(fault.value)


def test_data_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        train("diagnosis", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "classic", "loss": "classic"},
        {"loss": "classic"},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_every_way_of_training_runs(data, settings):
    settings = TINY | {"num_workers": 0, "steps": 2, "batch_size": 8} | settings
    summary = train("diagnosis", data, settings, register=False)
    assert summary["training"]["steps"] == 2
    assert "CPU cores" in summary["training"]["machine"]


def test_a_streamed_training_runs_and_a_set_too_small_for_it_is_refused(data, ray, tmp_path):
    settings = TINY | {"num_workers": 1, "steps": 2, "batch_size": 2, "data": "stream"}
    with pytest.raises(UserError, match="1 row groups, too few to stream in 2 lanes"):
        train("diagnosis", data, settings)
    larger = ingested(tmp_path, train=600, val=600)
    summary = train("diagnosis", larger, settings, register=False)
    assert summary["training"]["steps"] == 2


def test_the_idle_callbacks_are_still_called_what_they_are_left_out_by():
    from ray.train.v2.api import data_parallel_trainer

    assert {NO_DATA_SETS, CLEANER} <= vars(data_parallel_trainer).keys()


def test_each_batch_is_made_while_the_one_before_it_is_in_use():
    made = []

    def batches():
        for number in range(10):
            made.append(number)
            yield number

    ahead = worker._ahead(batches())
    seen = [next(ahead) for _ in range(3)]
    ahead.close()  # waits for what is under way
    assert seen == [0, 1, 2] and made == [0, 1, 2, 3]


def test_validation_looks_at_rows_from_all_over_the_split(tmp_path, monkeypatch):
    data = ingested(tmp_path, train=60)
    training, facts = configure("diagnosis", data, TINY)
    job = job_of(training, facts, data, str(tmp_path))
    every = torch.cat([batch.row for batch in worker.split(job, training.task, "train")])
    some = torch.cat([batch.row for batch in worker.split(job, training.task, "train", 5)])
    places = [every.tolist().index(row) for row in some.tolist()]
    assert len(places) == 5 and places[0] == 0 and places[-1] == len(every) - 1
