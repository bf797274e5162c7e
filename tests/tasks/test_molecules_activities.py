"""Activities are recognised with a spread, explained by atoms, and wished for."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from aigc_ray import assess, registry
from aigc_ray.card import card
from aigc_ray.errors import UserError
from aigc_ray.evaluate import evaluate
from aigc_ray.ingest import ingest
from aigc_ray.model import Model
from aigc_ray.tasks.molecules import alphabet, chemistry, metrics
from aigc_ray.tasks.molecules.networks import Recogniser
from aigc_ray.tasks.molecules.task import Molecules
from aigc_ray.train import configure, job_of, train
from tests import molecule_files
from tests.browser import CHROMIUM, Browser
from tests.service import listening, problem

SETTINGS = {
    "num_workers": 0, "batch_size": 32, "steps": 250, "adversarial_steps": 8, "width": 96,
    "critic_width": 32, "references": 60, "generator_rate": 1e-2, "recogniser_steps": 800,
    "recogniser_rate": 3e-3, "recogniser_width": 64, "recogniser_dropout": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a data set of two activities and a model of them."""
    folder = tmp_path_factory.mktemp("home")
    molecule_files.write(folder / "some.csv", 600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(folder / "home"))
        source, where = str(folder / "some.csv"), str(folder / "data")
        ingest(Molecules(split="random"), source, where, parallel=0)
        train("molecules", str(folder / "data"), SETTINGS)
        yield folder


@pytest.fixture(scope="module")
def model(home):
    return Model.open(registry.fetch("molecules:1"))


def test_what_is_learned_of_molecules_with_gaps_is_right_on_others(model):
    test = model.info["metrics"]["test"]
    assert test["auc_nitrogen"] > 0.97
    assert test["rmse_carbons"] < 1.0
    assert test["error_carbons"] < 0.3  # of the spread that the mean would miss
    assert test["brier_nitrogen"] < 0.1  # half of what a guess by frequency reaches


def test_answers_hold_activities_with_their_spread(model):
    first, second = model.predict([{"smiles": "CCCCCCO"}, {"smiles": "CCNC(=O)C"}])
    without, with_one = (one["activities"]["nitrogen"]["value"] for one in (first, second))
    assert with_one > without + 0.2
    assert abs(first["activities"]["carbons"]["value"] - 6) < 2.5
    for answer in (first, second):
        assert all(one["spread"] > 0 for one in answer["activities"].values())


def test_numbers_come_with_a_range_and_strange_molecules_with_a_warning(model):
    learned = alphabet.decode(model.members[0]["memory"].codes[0].tolist())
    usual, strange = model.predict([{"smiles": learned}, {"smiles": "OP(=O)(O)OP(=O)(O)O"}])
    carbons = usual["activities"]["carbons"]
    assert carbons["low"] < carbons["value"] < carbons["high"]
    assert "low" not in usual["activities"]["nitrogen"]
    assert usual["in_domain"] and usual["similarity"] == 1 and "warnings" not in usual
    assert not strange["in_domain"] and strange["similarity"] < 0.3
    assert "may be far off" in strange["warnings"][0]
    test = model.info["metrics"]["test"]
    assert 0.75 < test["covered_carbons"] <= 1
    assert "similarity to a training molecule" in card(model.info)
    made = model.generate(n=20, filters=[], novel=False)
    reach = float(model.members[0]["recogniser"].reach)
    assert all(one["in_domain"] == (one["nearest"]["similarity"] >= reach) for one in made)


def test_a_temperature_cools_what_was_too_sure(home, model):
    """Fitted anew after it was made to doubt nitrogen, and to be sure of that."""
    other = Model.open(registry.fetch("molecules:1"))
    told = other.members[0]["recogniser"]
    told.weights[-1].mul_(4)
    told.biases[-1][:, :, 0] -= 8
    training, facts = configure("molecules", str(home / "data"), SETTINGS)
    job = job_of(training, facts, str(home / "data"), str(home / "run"))
    assess.judge(other, job, training.policy)
    assert told.temperature[0] > 2
    assert told.margin[0] == 0 < told.margin[1]


def test_a_recalibration_on_other_molecules_is_told_by_the_new_version(home, model):
    molecule_files.write(home / "other.csv", 300, seed=9)
    where = str(home / "other")
    ingest(Molecules(split="random"), str(home / "other.csv"), where, parallel=0)
    renewed = evaluate("molecules:1", where, recalibrate=True)["recalibrated"]
    other = Model.open(registry.fetch(renewed))
    told, before = (one.members[0]["recogniser"] for one in (other, model))
    assert not torch.equal(told.margin, before.margin)
    for name, weight in before.named_parameters():
        assert torch.equal(weight, dict(told.named_parameters())[name])
    key = "nine of ten held-back molecules' carbons is missed by"
    assert other.info["calibration"][key] == f"at most {float(told.margin[1]):.3g}"
    assert other.info["calibration"] != model.info["calibration"]


def test_an_ensembles_members_are_each_settled(home, model):
    training, facts = configure("molecules", str(home / "data"), SETTINGS)
    job = job_of(training, facts, str(home / "data"), str(home / "run"))
    pair = [Model.open(registry.fetch("molecules:1")).members[0] for _ in range(2)]
    both = Model(model.task, pair, {})
    pair[1]["recogniser"].biases[-1][:, :, 1] += 1  # it misses by more
    assess.judge(both, job, training.policy)
    assert pair[1]["recogniser"].margin[1] > pair[0]["recogniser"].margin[1]
    names = [name for name in both.info["calibration"] if "carbons" in name]
    assert [name.split(":")[0] for name in names] == ["member 1", "member 2"]


def test_voices_differ_more_where_nothing_was_learned(model):
    usual, strange = model.predict(
        [{"smiles": "CCOc1ccc(C)cc1"}, {"smiles": "OP(=O)(O)OP(=O)(O)O"}]
    )
    assert strange["activities"]["carbons"]["spread"] > usual["activities"]["carbons"]["spread"]


def test_atoms_speak_for_an_activity(model):
    found = model.explain(model.parse({"smiles": "CCCCN"}))
    assert found["of"] == "nitrogen"
    assert len(found["atoms"]) == 5
    assert int(np.argmax(found["atoms"])) == 4
    assert "<svg" in found["svg"]
    # Written from its other end, its atoms are numbered as in the answer's SMILES all the same.
    turned = model.parse({"smiles": "NCCCC"})
    assert model.answer([turned])[0]["smiles"] == "CCCCN"
    assert model.explain(turned)["atoms"] == found["atoms"]
    other = model.explain(model.parse({"smiles": "CCCCN", "of": "carbons"}))
    assert other["of"] == "carbons"
    assert np.mean(other["atoms"][:4]) > 0
    with pytest.raises(UserError, match="activities nitrogen, carbons; got 'colour'"):
        model.explain(model.parse({"smiles": "C", "of": "colour"}))


def test_attributions_hang_on_what_was_learned(model):
    gate = model.info["explanation"]
    assert gate["passes"]
    assert abs(gate["correlation"][0]) < 0.5


def test_activities_are_targets_and_optimised(model):
    asked = {"n": 6, "filters": [], "novel": False}
    for item in model.generate(**asked, targets={"nitrogen": [0.5, 1]}):
        assert item["activities"]["nitrogen"]["value"] >= 0.5
    best = model.generate(**asked, optimise="carbons", rounds=3)
    plain = model.generate(**asked)
    means = [
        np.mean([one["activities"]["carbons"]["value"] for one in part]) for part in (best, plain)
    ]
    assert means[0] > means[1] + 1


def test_every_voice_is_a_perceptron_of_its_own():
    torch.manual_seed(0)
    network = Recogniser(2, 8, voices=3, dropout=0.0)
    counts = torch.randint(0, 3, (4, chemistry.COUNTS))
    numbers = torch.randn(4, chemistry.DESCRIPTORS)
    found = network(counts, numbers)
    assert found.shape == (4, 3, 2)
    rows = torch.cat([numbers.clamp(-5, 5), torch.log1p(counts.float())], 1)
    for voice in range(3):
        hidden = rows
        for place in range(3):
            hidden = hidden @ network.weights[place][voice] + network.biases[place][voice]
            hidden = torch.nn.functional.silu(hidden) if place < 2 else hidden
        torch.testing.assert_close(found[:, voice], hidden, atol=1e-4, rtol=1e-4)


def test_figures_of_activities_by_hand():
    from aigc_ray.schema import Field

    fields = [
        Field(name="a", kind="yes_no", parts=("target",)),
        Field(name="b", kind="number", parts=("target",)),
    ]
    value = {"a": np.array([1.0, 0.0, 1.0]), "b": np.array([1.0, 3.0, 0.0])}
    known = {"a": np.array([True, True, True]), "b": np.array([True, True, False])}
    said = {
        "activity": np.array([[0.9, 2.0], [0.2, 2.0], [0.1, 9.0]]),
        "margin": np.array([[0.0, 1.5]] * 3),
    }
    found = metrics.activities(said, value, known, fields)
    assert found["covered_b"] == 1.0
    assert found["auc_a"] == 0.5
    assert found["brier_a"] == pytest.approx((0.01 + 0.04 + 0.81) / 3)
    assert found["rmse_b"] == 1.0
    assert found["error_b"] == pytest.approx(1.0)  # it always tells the mean
    assert found["error"] == pytest.approx((found["error_a"] + 1.0) / 2)
    none = [{name: rows[:0] for name, rows in part.items()} for part in (said, value, known)]
    assert np.isnan(metrics.activities(*none, fields)["error"])


def test_nine_of_ten_new_numbers_lie_within_the_margin():
    chance = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        error = np.abs(chance.normal(size=40))
        inside.append(error[-1] <= metrics.missed_by(error[:-1], 0.1))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)
    assert metrics.missed_by(np.ones(8), 0.1) == 0.0  # too few to say
    assert metrics.missed_by(np.arange(9.0), 0.1) == 8.0


def test_a_model_of_other_activities_is_trained_on(home, model, tmp_path):
    """As one of none, such as the pretrained one, is on a laboratory's own."""
    lines = ["smiles,potency"]
    lines += [f"{text},{text.count('O')}" for text in molecule_files.smiles(300, seed=5)]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    where = str(tmp_path / "data")
    ingest(Molecules(split="random"), str(tmp_path / "own.csv"), where, parallel=0)
    changes = {"init": "molecules:1", "steps": 0, "adversarial_steps": 0, "recogniser_steps": 200}
    with pytest.raises(UserError, match="another form"):
        train("molecules", where, SETTINGS | changes | {"beside": False, "width": 32})
    # Its recogniser tells other activities, so another one starts afresh.
    training, _ = configure("molecules", where, SETTINGS | changes)
    assert training.init == "molecules:1"
    summary = train("molecules", where, SETTINGS | changes)
    assert summary["metrics"]["test"]["rmse"] < 0.7
    tuned = Model.open(registry.fetch(summary["model"]))
    assert tuned.info["training"]["began_with"].startswith("molecules:1 (")
    one, other = (each.members[0]["generator"].head.weight for each in (model, tuned))
    torch.testing.assert_close(one, other)
    longest, first = (int(one.members[0]["generator"].longest) for one in (tuned, model))
    assert longest >= first  # what it could say before it can say now
    known = next(iter(model.generate(n=1, filters=[], novel=False)))["smiles"]
    assert known  # what the first was trained on, the second knows too
    before = model.members[0]["memory"].known
    assert bool(((tuned.members[0]["memory"].known & before) == before).all())


def test_a_wrong_activity_over_http_is_told_and_a_right_one_explained(home, model):
    import httpx

    registry.promote("molecules:1")
    with listening("molecules") as url:
        ask = partial(httpx.post, f"{url}/v1/molecules/predict", timeout=60)
        wrong = {"items": [{"smiles": "CCN", "of": "colour"}], "explain": True}
        refused = problem(ask(json=wrong), 422)
        assert refused["field"] == "of"
        right = {"items": [{"smiles": "CCN", "of": "carbons"}], "explain": True}
        (item,) = ask(json=right).json()["items"]
        assert item["explanation"]["of"] == "carbons"
        assert len(item["explanation"]["atoms"]) == 3


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_shows_activities_and_their_atoms(home, model, tmp_path):
    pictures = Path(os.environ.get("AIGC_SCREENSHOTS") or tmp_path)
    registry.promote("molecules:1")
    browser = Browser()
    try:
        with listening("molecules") as url:
            browser.go(url)
            browser.wait("!document.querySelector('#molecule-card').hidden")
            assert browser.run("!!document.querySelector('[data-target=carbons]')")
            browser.run("document.querySelector('#atoms').checked = true; 0")
            browser.type("#smiles", "CCCCN")
            browser.press("Enter", 13)
            browser.wait("document.querySelectorAll('#molecule-facts img').length === 2")
            told = browser.text("#molecule-facts")
            assert "±" in told and "nine times of ten within" in told
            assert told.count("may be far off") == 1  # it is unlike the few that were kept
            assert "Blue atoms raise nitrogen" in told
            browser.picture(pictures / "activities.png")
            assert browser.errors == []
    finally:
        browser.close()
