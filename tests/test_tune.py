"""A sweep finds, remembers and finishes the best of its trials."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from aigc_ray import fidelity, registry, runs
from aigc_ray.errors import UserError
from aigc_ray.ingest import load_manifest
from aigc_ray.model import Model
from aigc_ray.space import drawn, searched
from aigc_ray.tasks.diagnosis.task import Diagnosis
from aigc_ray.train import configure
from aigc_ray.tune import _scheduler, tune
from aigc_ray.worker import split
from tests.tiny import TINY, ingested

pytestmark = pytest.mark.timeout(600)

SWEEP = TINY | {
    "steps": 8,
    "validate_every": 2,
    "checkpoint_every": 2,
    "num_workers": 0,
    "trials": 3,
    "space.recogniser_rate": "1e-4..1e-2",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ingested(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sweep(data, tmp_path_factory, ray):
    """A sweep that nothing disturbs, and its home."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(home))
        return tune("diagnosis", data, SWEEP) | {"home": str(home)}


# --- what a sweep leaves --------------------------------------------------------------------------


def test_the_first_trial_is_the_training_as_it_is(sweep):
    assert [row["trial"] for row in sweep["trials"]] == [1, 2, 3]
    first = sweep["trials"][0]
    assert first["settings"]["task.recogniser_rate"] == Diagnosis().recogniser_rate
    assert first["settings"]["task.adversary_rate"] == Diagnosis().adversary_rate
    assert first["state"] == "finished" and first["steps"] == 8


def test_the_best_finished_trial_is_evaluated_and_registered_alone(sweep, monkeypatch):
    monkeypatch.setenv("AIGC_HOME", sweep["home"])
    assert [model["version"] for model in registry.models()] == [1]
    assert sweep["model"] == "diagnosis:1" and set(sweep["metrics"]) == {"val", "test"}
    rows = {row["trial"]: row for row in sweep["trials"]}
    best = rows[sweep["best_trial"]]
    assert best["objective"] == max(row["objective"] for row in rows.values())
    model = Model.open(registry.fetch(sweep["model"]))
    # Trials are told apart by the half of the validation split that chooses.
    job = {"data": (data := model.info["data"]["uri"]), "description": load_manifest(data)}
    plain = Model(model.task, model.members, {})
    chosen = fidelity.figures(plain, split(job, model.task, "val", half=True))["auc"]
    assert best["objective"] == pytest.approx(chosen)
    for key, value in best["settings"].items():
        assert getattr(model.task, key.removeprefix("task.")) == value
    card = registry.show(sweep["model"])["card"]
    assert "trials: 3" in card and f"best trial: {sweep['best_trial']}" in card


def test_the_report_lists_the_trials_and_the_run_is_listed(sweep, monkeypatch):
    monkeypatch.setenv("AIGC_HOME", sweep["home"])
    page = Path(sweep["report"]).read_text()
    assert "<h2>Trials</h2>" in page and page.count("chosen</td>") == 1
    assert "recogniser_rate" in page and "src='http" not in page
    assert [(run["name"], run["state"]) for run in runs.listed()] == [(sweep["run"], "done")]
    kept = list(Path(sweep["uri"]).glob("trials/*/checkpoints"))
    assert [path.parent.name for path in kept] == [f"{sweep['best_trial']:02d}"]
    assert not (Path(sweep["uri"]) / "ray").exists()


def test_the_same_command_returns_a_finished_sweep(sweep, data, monkeypatch, capfd):
    monkeypatch.setenv("AIGC_HOME", sweep["home"])
    assert tune("diagnosis", data, SWEEP) | {"home": sweep["home"]} == sweep
    assert "already done" in capfd.readouterr().err


def test_a_killed_sweep_goes_on_where_it_was(sweep, data, home, ray, capfd):
    code = "import json, sys; from aigc_ray.tune import tune; tune(*json.loads(sys.argv[1]))"
    arguments = json.dumps(["diagnosis", data, SWEEP])
    started = subprocess.Popen([sys.executable, "-c", code, arguments], stderr=subprocess.PIPE)
    until = time.monotonic() + 300
    while not (list(home.glob("runs/*/trials/01.json")) and _validated(home, "02")):
        assert started.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    processes = [*psutil.Process(started.pid).children(recursive=True), started]
    for process in processes:
        process.kill()
    started.communicate()
    done = next(home.glob("runs/*/trials/01.json"))
    written, capture = done.stat().st_mtime_ns, capfd.readouterr()
    assert not capture.out
    resumed = tune("diagnosis", data, SWEEP)
    assert resumed["trials"] == sweep["trials"] and resumed["best_trial"] == sweep["best_trial"]
    assert resumed["metrics"] == sweep["metrics"] and resumed["run"] == sweep["run"]
    assert done.stat().st_mtime_ns == written
    told = capfd.readouterr()
    assert "trial 1/3: step" not in told.err and "trial 1/3: over" in told.err
    assert not told.out  # the result alone goes to stdout, from the command line


def _validated(home: Path, trial: str) -> bool:
    found = list(home.glob(f"runs/*/trials/{trial}/progress.json"))
    return bool(found and json.loads(found[0].read_text())["history"])


def test_trials_may_have_workers_of_their_own(data, ray):
    settings = SWEEP | {"num_workers": 2, "trials": 2, "steps": 4, "seed": 1}
    summary = tune("diagnosis", data, settings)
    assert summary["training"]["workers"] == 2 and summary["model"] == "diagnosis:1"
    states = [(row["state"], row["steps"]) for row in summary["trials"]]
    assert states[0] == ("finished", 4) and states[1][0] in ("finished", "stopped early")


def test_a_trial_that_fails_is_told_and_the_others_go_on(data, ray, capfd):
    spoiled = {"space.adversary_rate": "-1,-2", "trials": 2, "max_failures": 0, "steps": 2}
    summary = tune("diagnosis", data, SWEEP | spoiled)
    assert [row["state"] for row in summary["trials"]] == ["finished", "failed"]
    assert "Invalid learning rate: -" in summary["trials"][1]["reason"]
    assert "trial 2/2: failed: ValueError" in capfd.readouterr().err


# --- what is tried --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(data):
    return configure("diagnosis", data, TINY)[0]


def tried(training, wanted, count=6, given=()):
    fixed, space = searched(training, given, wanted)
    return list(drawn(fixed, space, count).values()), space


def test_the_same_command_tries_the_same_and_another_seed_another(training):
    trials, _ = tried(training, {})
    assert trials[0] == training and len(trials) == 6
    assert tried(training, {})[0] == trials
    assert tried(replace(training, seed=1), {})[0][1:] != trials[1:]


def test_every_part_of_a_range_is_tried(training):
    trials, space = tried(training, {"penalty": "0.01..100"}, count=9)
    assert space["task.penalty"] == ("log", 0.01, 100.0)
    octaves = sorted(one.task.penalty for one in trials[1:])
    for number, value in enumerate(octaves):
        share = 10 ** (4 * number / 8 - 2), 10 ** (4 * (number + 1) / 8 - 2)
        assert share[0] * 0.99 <= value <= share[1] * 1.01


def test_a_search_is_written_as_a_range_a_choice_or_a_value(training):
    wanted = {"augmentation": "0...5", "batch_size": "8,16", "penalty": 0.25, "flip": "true"}
    trials, space = tried(training, wanted, given=["width", "recogniser_rate"])
    assert space == {
        "task.adversary_rate": ("log", 3e-3 / 5, 6e-3),
        "task.augmentation": ("linear", 0.0, 0.5),
        "batch_size": ("choice", 8, 16),
    }
    assert all(one.task.penalty == 0.25 and one.task.flip for one in trials)
    assert {one.batch_size for one in trials} == {8, 16}
    assert {one.task.width for one in trials} == {training.task.width}


def test_whole_numbers_stay_whole(training):
    trials, _ = tried(training, {"recogniser_width": "16..64"})
    assert all(isinstance(one.task.recogniser_width, int) for one in trials)


def test_a_choice_of_few_is_not_tried_twice(training):
    given = ["adversary_rate", "recogniser_rate", "augmentation", "penalty"]
    trials, _ = tried(training, {"width": "0.125,0.25"}, count=8, given=given)
    assert [one.task.width for one in trials] == [0.125, 0.25]


def test_fine_tuning_keeps_the_networks_it_starts_from(training):
    _, space = tried(replace(training, init="diagnosis:1"), {})
    assert "task.width" not in space and "task.recogniser_rate" in space
    with pytest.raises(UserError, match=r"space\.width: width changes the networks"):
        searched(replace(training, init="diagnosis:1"), [], {"width": "0.25,0.5"})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"space.recogniser_rat": "1e-4..1e-2"}, "did you mean recogniser_rate"),
        ({"space.penalty": "2..1"}, r"space\.penalty is low\.\.high, or a,b,c, or one value"),
        ({"space.penalty": "1..many"}, r"space\.penalty is low\.\.high"),
        ({"space.penalty": "few"}, "penalty is a number; got 'few'"),
        ({"space.loss": "classic,hinge"}, "loss is one of relativistic, classic; got 'hinge'"),
        ({"space.steps": "2..9"}, r"space\.steps: steps cannot be searched"),
        ({"space.seed": "1,2,3"}, "seed cannot be searched"),
        ({"space.width": "0.1,0.2"}, "width is given twice"),
        ({"trials": 0}, "trials is 1 or more; got 0"),
        ({"concurrent": "many"}, "concurrent is a whole number; got 'many'"),
        ({"recogniser_rat": 1}, "did you mean recogniser_rate"),
    ],
)
def test_wrong_searches_are_refused_in_one_sentence(data, home, settings, sentence):
    with pytest.raises(UserError, match=sentence) as fault:
        tune("diagnosis", data, TINY | settings)
    assert "\n" not in str(fault.value)
    assert not home.exists()


@pytest.mark.parametrize(("direction", "better", "worse"), [("max", 0.9, 0.5), ("min", 0.5, 0.9)])
def test_the_worse_half_is_stopped_whatever_the_direction(direction, better, worse):
    scheduler = _scheduler(direction, 8)
    good, bad = (SimpleNamespace(trial_id=name) for name in ("good", "bad"))
    for one in (good, bad):
        scheduler.on_trial_add(None, one)
    for step in (2, 4, 6, 8):
        told = {"step": step, "objective": better}
        assert scheduler.on_trial_result(None, good, told) == "CONTINUE"
    assert scheduler.on_trial_result(None, bad, {"step": 2, "objective": worse}) == "STOP"


def test_without_a_range_there_is_nothing_to_search(training):
    given = ["adversary_rate", "recogniser_rate", "augmentation", "penalty", "width"]
    with pytest.raises(UserError, match="nothing is left to search"):
        searched(training, given, {})
