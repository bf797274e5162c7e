"""A model is told as a department would test it: with intervals, by subgroup, on other data."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_ray import assess, registry
from aigc_ray.card import card
from aigc_ray.errors import UserError
from aigc_ray.evaluate import evaluate
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.model import Model
from aigc_ray.splitter import halves
from aigc_ray.tasks.diagnosis.task import Diagnosis
from aigc_ray.train import train
from tests.tiny import TINY

SQUARE = slice(8, 20)


def place(folder: Path, *, rows: int, light: int, seed: int) -> str:
    """A department's images, two a patient, those of men darker; its data set's URI."""
    rng = np.random.default_rng(seed)
    source = folder / "source"
    source.mkdir(parents=True)
    with (source / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split", "patient", "sex", "age"])
        for number in range(rows):
            patient, sick = number // 2, number // 2 % 2
            split = ("train", "train", "val", "test")[patient // 2 % 4]
            sex = "MF"[patient // 8 % 2]
            level = rng.integers(0, 90, (28, 28)) + light + 30 * (sex == "F")
            level[SQUARE, SQUARE] += 70 * sick
            Image.fromarray(level.clip(0, 255).astype(np.uint8)).save(source / f"{number}.png")
            label = ("healthy", "sick")[sick]
            table.writerow([f"{number}.png", label, split, f"p{patient}", sex, 30 + patient % 40])
    ingest(Diagnosis(size=28), str(source), str(folder / "data"), parallel=0)
    return str(folder / "data")


@pytest.fixture(scope="module")
def department(tmp_path_factory):
    """A home with a model trained on one department's data, and that data."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(home))
        data = place(home / "here", rows=480, light=20, seed=0)
        settings = TINY | {"num_workers": 0, "members": 2, "steps": 60}
        train("diagnosis", data, settings)
    return str(home), data


@pytest.fixture
def model(department, monkeypatch):
    monkeypatch.setenv("AIGC_HOME", department[0])
    return Model.open(registry.fetch("diagnosis:1"))


def test_an_ensemble_has_members_that_differ_and_answers_with_their_spread(model):
    assert len(model.members) == 2 and model.info["seeds"] == [0, 1]
    first, second = (member.state_dict() for member in model.members)
    assert not all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("better", ["recogniser", "beside"])
def test_whoever_learned_from_generated_rows_answers_where_that_does_no_harm(
    model, department, better
):
    data = department[1]
    job = {"data": data, "description": load_manifest(data)}
    for member in model.members:  # both know the same, and then one of them nothing any more
        member["beside"].load_state_dict(member["recogniser"].state_dict())
        worse = member["beside" if better == "recogniser" else "recogniser"]
        for parameter in worse.head.parameters():
            torch.nn.init.zeros_(parameter)
    skilled = model.members[0][better]
    assess.admit(model, job)
    found = model.info["generated_rows"]
    assert found["heard"] == (better == "beside")
    assert (found["gain"]["value"] > 0) == found["heard"]
    assert found["gain_elsewhere"] != found["gain"]  # of the rows perturbed
    assert model.members[0]["recogniser"] is skilled
    lines = card(model.info)
    heard = "the recogniser that learned from generated rows too:" in lines
    assert heard == found["heard"] and "which is not heard" in lines


def test_every_figure_stands_within_its_interval_and_patients_are_drawn_whole(model):
    metrics, intervals = model.info["metrics"]["test"], model.info["intervals"]["test"]
    assert {"auc", "acc", "balanced_acc", "sensitivity", "specificity"} <= set(intervals)
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high
    assert metrics["nll"] <= metrics["nll_uncalibrated"] + 0.1
    assert 0 <= metrics["answered"] <= 1


def test_every_metric_is_told_by_sex_and_by_decade(model, department):
    groups = model.info["subgroups"]["test"]
    assert set(groups["sex"]) == {"F", "M"}
    assert {"30-39", "40-49"} <= set(groups["age_band"])
    rows = load_manifest(department[1])["splits"]["test"]["rows"]
    assert sum(one["rows"] for one in groups["sex"].values()) == rows
    assert "auc" in groups["sex"]["F"]
    assert "By sex" in (Path(department[0]) / "models/diagnosis/1/report.html").read_text()


def test_each_opinion_stands_beside_the_answer(model):
    assert set(model.info["opinions"]["test"]) == {"recogniser", "critic", "mean", "beside"}


def test_rows_of_a_patient_are_in_one_half(department):
    job = {"data": department[1], "description": load_manifest(department[1])}
    patient = assess.marks(job, "val").patient
    half = halves(patient)
    assert 0.25 < half.mean() < 0.75
    for name in set(patient):
        assert len(set(half[patient == name])) == 1


def test_a_model_is_fitted_to_another_place_without_training(model, department, tmp_path):
    other = place(tmp_path / "there", rows=320, light=110, seed=1)  # a brighter scanner
    before = evaluate("diagnosis:1", other)
    after = evaluate("diagnosis:1", other, recalibrate=True, changes={"alpha": 0.2})
    assert before["generation"] is None  # it is another place's data
    renewed = Model.open(registry.fetch(after["recalibrated"]))
    assert renewed.info["recalibrated"]["from"] == "diagnosis:1"
    assert renewed.judgement.alpha == 0.2
    for old, new in zip(model.members, renewed.members, strict=True):
        state = new.state_dict()
        assert all((value == state[name]).all() for name, value in old.state_dict().items())
    # There nearly all looked unusual to a model that knew the darker scanner alone.
    assert after["metrics"]["answered"] > before["metrics"]["answered"]
    assert after["metrics"]["nll"] <= before["metrics"]["nll"]
    with pytest.raises(UserError, match="alpha is a setting of --recalibrate"):
        evaluate("diagnosis:1", other, changes={"alpha": 0.2})
