"""Survival curves and cohorts, checked against simulated patients whose truth is known."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from aigc_ray import checkpoint, fidelity, noise, storage
from aigc_ray.adversary import Adversary
from aigc_ray.card import card
from aigc_ray.errors import UserError
from aigc_ray.evaluate import evaluate
from aigc_ray.ingest import ingest
from aigc_ray.model import Model
from aigc_ray.schema import Field, Schema
from aigc_ray.task import Batch, Step
from aigc_ray.tasks.prognosis import metrics
from aigc_ray.tasks.prognosis.networks import Clock, Cohort, Encoder, Times
from aigc_ray.tasks.prognosis.task import Prognosis
from aigc_ray.train import train
from aigc_ray.worker import split
from tests import cohort

STEPS = 300


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of 1,500 simulated patients, and its job."""
    folder = tmp_path_factory.mktemp("prognosis")
    cohort.write(folder / "patients.csv", 1500)
    (folder / "columns.json").write_text(json.dumps(DECLARED))
    task = Prognosis(columns=str(folder / "columns.json"), steps=STEPS, dropout=0.1)
    manifest = ingest(task, str(folder / "patients.csv"), str(folder / "data"), parallel=0)
    task = dataclasses.replace(task, schema=Schema.from_json(manifest["schema"]))
    job = {"data": str(folder / "data"), "description": manifest}
    rows = fidelity.joined(split(job, task, "train"), 10**6)
    adversary = Adversary(task, seed=0)
    adversary.prepare(iter([rows]))
    random = np.random.default_rng(0)
    for step in range(adversary.steps):
        chosen = torch.from_numpy(random.integers(len(rows.row), size=128))
        adversary.step(rows.take(chosen)._replace(row=noise.keys(step, torch.arange(128))))
    return Model(task, [adversary.average], {"task": "prognosis"}), job


DECLARED = {
    "time": {"column": "time", "unit": "years"},
    "event": "event",
    "features": {
        "age": {"kind": "number", "unit": "years"},
        "marker": "number",
        "therapy": {"kind": "category", "values": list(cohort.THERAPIES)},
        "grade": {"kind": "ordinal", "values": ["0", "1", "2"]},
    },
}


def patients(count: int, seed: int = 3) -> tuple[cohort.Cohort, list[dict]]:
    found = cohort.made(count, seed)
    items = [
        {"age": a, "marker": m, "therapy": cohort.THERAPIES[t], "grade": str(g)}
        for a, m, t, g in zip(
            found.age.tolist(), found.marker.tolist(), found.therapy, found.grade, strict=True
        )
    ]
    return found, items


# --- curves -----------------------------------------------------------------------------------


def test_survival_curves_start_at_one_and_never_rise(trained):
    model, _ = trained
    _, items = patients(300)
    for answer in model.predict(items):
        for name in ("survival", "low", "high"):
            curve = np.array(answer["curve"][name])
            assert curve[0] == 1
            assert (np.diff(curve) <= 0).all()


def test_curves_are_near_the_true_ones(trained):
    model, _ = trained
    found, items = patients(1500)
    horizons = [1.0, 3.0]
    answers = model.predict([item | {"horizons": horizons} for item in items])
    said = np.array([[one["survival"] for one in a["horizons"]] for a in answers])
    true = np.exp(-found.rate[:, None] * horizons)
    crude = np.exp(-found.rate.mean() * np.array(horizons))
    assert np.abs(said - true).mean() < 0.05
    assert np.abs(said - true).mean() < 0.5 * np.abs(crude - true).mean()


def test_medians_lie_where_half_are_left_and_intervals_hold_nine_tenths(trained):
    model, _ = trained
    found, items = patients(1500)
    answers = model.predict(items)
    died = found.death
    ends = np.array([[a["interval"][0], a["interval"][1] or np.inf] for a in answers])
    inside = ((ends[:, 0] <= died) & (died <= ends[:, 1])).mean()
    assert 0.85 < inside < 0.96
    before = [d < a["median"] for d, a in zip(died, answers, strict=True) if a["median"]]
    assert np.mean(before) == pytest.approx(0.5, abs=0.08)


def test_missing_features_are_answered_and_every_one_may_be_missing(trained):
    model, _ = trained
    whole = {"age": 75, "marker": 0.0, "therapy": "none", "grade": 2}
    for name in whole:
        (answer,) = model.predict([{k: v for k, v in whole.items() if k != name}])
        assert 0 < answer["median"] < 4


def test_values_outside_the_training_range_are_answered_with_a_warning(trained):
    model, _ = trained
    (usual, strange) = model.predict([{"age": 60}, {"age": 150, "horizons": [1000]}])
    assert "warnings" not in usual
    assert "age=150" in strange["warnings"][0]
    assert "outside what was trained on" in strange["warnings"][0]
    assert "1000" not in strange["warnings"][0]
    assert "horizons" in strange["warnings"][1]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"age": 60, "height": 170}, "height is not known"),
        ({"age": "old"}, "age is a number"),
        ({"age": float("inf")}, "age is a finite number"),
        ({"therapy": "magic"}, "therapy is one of none, old, new"),
        ({}, "a patient has at least one feature"),
        ({"age": 60, "horizons": [-1]}, "horizons are times from 0 on"),
        ({"age": 60, "horizons": {"a": 1}}, "horizons is a list"),
    ],
)
def test_a_wrong_patient_is_refused_by_the_name_of_the_field(trained, item, words):
    model, _ = trained
    with pytest.raises(UserError, match=words):
        model.predict([item])


def test_the_chance_that_is_explained_is_that_of_the_curve(trained):
    model, _ = trained
    batch = model.task.encode({"age": np.array([55.0, 70.0])}, noise.keys(0, torch.arange(2)))
    score = model.task.score(model.members[0], batch, torch.tensor([1.5, 1.5]))
    told = model.recognise(batch)
    curve = metrics.at(told["times"][0].numpy(), told["survival"].numpy(), np.array([1.5]))[:, 0]
    np.testing.assert_allclose(score.numpy(), curve, atol=2e-3)


def test_attributions_sum_to_what_sets_a_patient_apart(trained):
    model, _ = trained
    patient = {"age": 78, "marker": 0.1, "therapy": "none", "grade": 2, "horizons": [2.0]}
    found = model.explain(model.parse(patient))
    (answer,) = model.predict([patient])
    assert found["survival"] == pytest.approx(answer["horizons"][0]["survival"], abs=2e-3)
    total = sum(found["attributions"].values())
    assert total == pytest.approx(found["survival"] - found["baseline"], abs=5e-3)
    assert next(iter(found["attributions"])) == "age"  # it speaks most, and against
    assert found["attributions"]["age"] < -0.1
    assert abs(found["attributions"]["marker"]) < 0.03


def test_what_if_is_answered_as_an_association(trained):
    model, _ = trained
    patient = {"age": 60, "therapy": "none", "grade": 1, "horizons": [2.0]}
    changed = {"therapy": "new"}
    (answer,) = model.predict([patient | {"what_if": changed}])
    (other,) = model.predict([patient | changed])
    assert answer["what_if"]["curve"] == other["curve"]
    assert "association" in answer["what_if"]["warnings"][0]
    assert answer["what_if"]["median"] > answer["median"]
    with pytest.raises(UserError, match="what_if: height"):
        model.predict([patient | {"what_if": {"height": 3}}])


# --- hazards ----------------------------------------------------------------------------------


def times(bins: int = 6, members: int = 3) -> Times:
    torch.manual_seed(0)
    made = Times(
        Encoder(2, (3,)), members=members, bins=bins, width=8, depth=1, waves=3, dropout=0.0
    )
    made.fit(torch.linspace(0.1, 10, 200), torch.arange(200) % 2 == 0)
    return made.eval()


def hazards(network: Times, count: int = 5) -> torch.Tensor:
    number = torch.randn(count, 2)
    kinds = [torch.nn.functional.one_hot(torch.arange(count) % 4, 4).float()]
    seen = network.encoder(number, torch.ones(count, 2, dtype=torch.bool), kinds)
    torch.nn.init.normal_(network.head)
    return network(seen)


@torch.no_grad()
def test_a_density_is_what_the_curve_loses():
    network = times()
    log_hazard = hazards(network)
    when = torch.linspace(0.3, 12, 5)
    near = torch.stack([when - 1e-3, when + 1e-3], 1)
    left = torch.exp(-network.cumulated(log_hazard, near))  # (B, members, 2)
    density = (left[:, :, 0] - left[:, :, 1]) / 2e-3
    likely = network.log_likelihood(log_hazard, when, torch.ones(5))
    torch.testing.assert_close(likely.exp(), density, rtol=0.02, atol=1e-4)
    gone = network.log_likelihood(log_hazard, when, torch.zeros(5))
    torch.testing.assert_close(gone, -network.cumulated(log_hazard, when[:, None])[:, :, 0])


def test_what_is_learned_from_is_the_likelihood_of_the_curve(trained):
    """The mixture's, whose curve is the members' mean; the members' own mean is lower."""
    model, job = trained
    networks = copy.deepcopy(model.members[0])
    networks["recogniser"].head.data *= 3  # the members disagree
    model = Model(model.task, [networks], {})
    task = dataclasses.replace(model.task, dropout=0.0, hidden=0.0)
    rows = fidelity.joined(split(job, task, "test"), 200)
    step = Step(lambda value, weight: value.mean(), 0, 0.5, 0.0, lambda name, value: None)
    player = next(p for p in task.stages()[0].players if p.network == "recogniser")
    loss = player.loss(networks, rows, None, step)
    found = model.recognise(rows)
    curves = found["times"][0].numpy(), found["survival"].numpy()
    time, event = rows.value["time"].numpy(), rows.value["event"].numpy()
    assert float(loss) == pytest.approx(metrics.nll(*curves, time, event), abs=0.02)


@torch.no_grad()
def test_drawn_times_cumulate_the_hazard_that_was_spent():
    network = times()
    seen = torch.randn(5, network.encoder.size)
    log_hazard = network(seen)
    spent, member = torch.tensor([0.01, 0.3, 1.0, 3.0, 9.0]), torch.tensor([0, 1, 2, 0, 1])
    own = network.of(seen, member)
    torch.testing.assert_close(own, log_hazard[torch.arange(5), member])
    drawn = network.drawn(own, spent)
    back = network.cumulated(log_hazard, drawn[:, None])[torch.arange(5), member, 0]
    torch.testing.assert_close(back, spent, rtol=1e-4, atol=1e-5)


def test_the_base_hazard_is_events_over_exposure():
    network = times(bins=4)
    time, event = torch.linspace(0.1, 10, 200), torch.arange(200) % 2 == 0
    assert network.edges[1] < time[event].min() < network.edges[1] + 0.1  # nobody dies before
    for place in range(1, 4):
        low, high = network.edges[place], network.edges[place + 1]
        inside = (time > low) & (time <= high)
        exposed = (time.clamp(max=high) - low).clamp(min=0).sum()
        rate = (event & inside).sum() / exposed
        assert float(network.base[place].exp()) == pytest.approx(float(rate), rel=0.05)


def test_tied_times_leave_no_interval_empty():
    network = times()
    network.fit(torch.tensor([1.0] * 50 + [2.0] * 50), torch.ones(100, dtype=torch.bool))
    assert (network.edges.diff() > 0).all()
    assert torch.isfinite(network.base).all()


def test_the_clock_says_what_share_is_shorter():
    clock = Clock()
    time = torch.sort(torch.distributions.Exponential(0.2).sample((999,))).values
    clock.fit(time)
    share = clock(time)
    torch.testing.assert_close(share, torch.linspace(0, 1, 999), atol=0.02, rtol=0)


# --- cohorts ----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_generator_has_the_columns_and_their_ties():
    random = np.random.default_rng(0)
    x = random.normal(size=3000)
    number = torch.tensor(
        np.stack([50 + 10 * x, np.round(np.exp(x + random.normal(size=3000)))], 1)
    )
    known = torch.ones(3000, 2, dtype=torch.bool)
    known[:, 1] = torch.from_numpy(random.random(3000) < 0.8)
    code = torch.from_numpy((x > 0.5).astype(int))
    generator = Cohort(2, (2,))
    generator.fit(number.float(), known, [code])
    made, seen, (kind,) = generator(noise.normal(noise.keys(0, torch.arange(3000)), "", (5,)))
    kind = kind.double()
    assert float(made[:, 0].mean()) == pytest.approx(50, abs=1)
    assert float(made[:, 0].std()) == pytest.approx(10, abs=1)
    assert (made[:, 1] == made[:, 1].round()).all()  # counts stay whole
    assert float(seen[:, 1].float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(kind.mean()) == pytest.approx(float(code.double().mean()), abs=0.03)
    tied = np.corrcoef(made[:, 0].numpy(), kind.numpy())[0, 1]
    assert tied == pytest.approx(np.corrcoef(x, code)[0, 1], abs=0.15)


@torch.no_grad()
def test_a_long_tail_is_not_stretched_to_its_end():
    value = torch.exp(1.5 * torch.randn(6000, generator=torch.Generator().manual_seed(0)))
    generator = Cohort(1, ())
    generator.fit(value[:, None], torch.ones(6000, 1, dtype=torch.bool), [])
    made, *_ = generator(noise.normal(noise.keys(0, torch.arange(6000)), "", (2,)))
    for level in (0.5, 0.9, 0.98, 0.99):
        assert float(made.quantile(level)) == pytest.approx(float(value.quantile(level)), rel=0.12)


def test_no_patients_own_extreme_is_kept():
    number = torch.cat([torch.randn(500), torch.tensor([1000.0])])[:, None]
    generator = Cohort(1, ())
    generator.fit(number, torch.ones(501, 1, dtype=torch.bool), [])
    assert float(generator.values.max()) < 500


def test_a_generated_cohort_is_like_the_real_one_and_no_copy(trained):
    model, job = trained
    parts = {name: list(split(job, model.task, name)) for name in ("train", "val", "test")}
    found = fidelity.fidelity(model, parts["train"], parts["val"], parts["test"])
    assert found["coverage"] > 0.85
    for name in ("marginals", "ties", "course"):
        assert found[name] < 2 * found[f"{name}_real"] + 0.02
    assert found["membership_auc"]["low"] < 0.5 < found["membership_auc"]["high"]
    assert not found["copies"]


def test_cohorts_that_differ_are_told_by_what_differs(trained):
    model, job = trained
    rows = fidelity.joined(split(job, model.task, "train"), 400)
    same = model.task.compared(rows, rows)
    assert same == {"marginals": 0, "ties": 0, "course": 0}
    older = rows._replace(value=rows.value | {"age": rows.value["age"] + 15})
    assert model.task.compared(rows, older)["marginals"] > 0.05
    random = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    shuffled = rows._replace(value=rows.value | {"time": rows.value["time"][random]})
    assert model.task.compared(rows, shuffled)["ties"] > 0.02
    sooner = rows._replace(value=rows.value | {"time": rows.value["time"] / 2})
    assert model.task.compared(rows, sooner)["course"] > 0.05
    whole = torch.ones(400, dtype=torch.bool)
    assert model.task.compared(rows, rows._replace(known=rows.known | {"age": whole}))["marginals"]


def test_what_is_learned_from_a_cohort_holds_for_real_patients(trained):
    model, job = trained
    parts = {name: list(split(job, model.task, name)) for name in ("train", "test")}
    found = fidelity.transfer(model, parts["train"], parts["test"], 60)
    assert found["trtr_harrell_c"] > 0.65
    assert found["tstr_over_trtr"] > 0.93


def test_generated_patients_are_whole_and_the_same_again(trained):
    model, _ = trained
    items = model.generate(n=200, seed=4)
    assert items == model.generate(n=200, seed=4)
    assert items[150]["number"] == 150
    assert {"age", "marker", "therapy", "grade", "time", "event"} <= set(items[0])
    assert {item["therapy"] for item in items} == set(cohort.THERAPIES)
    assert any(item["age"] is None for item in items)
    assert {item["event"] for item in items} == {0, 1}


def test_the_times_of_one_patient_follow_the_patients_curve(trained):
    model, _ = trained
    patient = {"age": 70, "therapy": "none", "grade": 1}
    drawn = np.array([item["time"] for item in model.generate(n=2000, seed=0, patient=patient)])
    (answer,) = model.predict([patient])
    assert np.median(drawn) == pytest.approx(answer["median"], rel=0.1)
    assert np.quantile(drawn, 0.05) == pytest.approx(answer["interval"][0], rel=0.25, abs=0.03)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"n": 0}, "n is a whole number"),
        ({"n": 2, "class": "x"}, "generate takes n, seed and patient"),
        ({"n": 2, "patient": [1]}, "patient is an object"),
        ({"n": 2, "patient": "{"}, "patient is a JSON object"),
        ({"n": 2, "patient": {"height": 3}}, "height is not known"),
    ],
)
def test_a_wrong_request_is_refused(trained, request_, words):
    model, _ = trained
    with pytest.raises(UserError, match=words):
        model.generate(**request_)


# --- the critic's part ------------------------------------------------------------------------


def curved(count: int) -> Batch:
    """Patients whose second column is the square of the first: no copula has that."""
    row = torch.arange(count)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=random)
    y = x.square() + 0.1 * torch.randn(count, generator=random)
    end = torch.distributions.Exponential(1.0).icdf(torch.rand(count, generator=random))
    fields = {"x": x, "y": y, "time": end, "event": (row % 3 > 0).float()}
    known = {name: torch.ones(count, dtype=torch.bool) for name in fields}
    return Batch(fields, known, torch.ones(count), noise.keys(1, row))


def test_the_critic_lets_pass_what_the_copula_lacks():
    columns = [Field(name=name, kind="number", parts=("input", "generated")) for name in "xy"]
    ends = [Field(name=name, kind="number", parts=("target",)) for name in ("time", "event")]
    task = Prognosis(schema=Schema((*columns, *ends)), steps=20, critic_steps=300)
    rows = curved(2000)
    adversary = started(task, rows)
    random = np.random.default_rng(0)
    while not adversary.finished:
        chosen = torch.from_numpy(random.integers(2000, size=128))
        adversary.step(rows.take(chosen))

    def apart(task: Prognosis) -> float:
        """Mean distance from the curve."""
        made = Model(task, [adversary.average], {}).draw(curved(2000)).value
        return float((made["y"] - made["x"].square()).abs().mean())

    without = apart(dataclasses.replace(task, candidates=1))
    assert without > 0.8
    assert apart(task) < 0.8 * without
    # What is drawn while the critic learns is what the generator makes.
    torch.manual_seed(0)
    training = task.draw(adversary.networks, rows).value["x"]
    alone = dataclasses.replace(task, candidates=1).draw(adversary.average, rows).value["x"]
    assert torch.equal(training, alone)


def test_without_its_steps_there_is_no_critic(trained):
    model, job = trained
    rows = fidelity.joined(split(job, model.task, "train"), 10**6)
    task = dataclasses.replace(model.task, critic_steps=0, steps=3)
    (stage,) = task.stages()
    assert [player.network for player in stage.players] == ["recogniser", "censoring"]
    alone = stepped(started(task, rows), rows, 3).average
    made = Model(task, [alone], {}).draw(rows.take(torch.arange(5))).value["age"]
    assert torch.equal(
        made, dataclasses.replace(task, candidates=1).draw(alone, rows).value["age"][:5]
    )


def test_settings_are_checked():
    with pytest.raises(UserError, match="dropout is at least 0 and below 1"):
        Prognosis(dropout=1.0)
    with pytest.raises(UserError, match="critic_steps is 0 or more"):
        Prognosis(critic_steps=-1)
    with pytest.raises(UserError, match="mixture is at least 1"):
        Prognosis(mixture=0)


# --- workers ----------------------------------------------------------------------------------


def started(task: Prognosis, rows: Batch) -> Adversary:
    adversary = Adversary(task, seed=0)
    adversary.prepare(iter([rows]))
    return adversary


def stepped(adversary: Adversary, rows: Batch, until: int, share: tuple[int, int] = (0, 1)):
    """On to a step, each of 64 rows, of which a worker has its part; step 6 is the best one."""
    part, best = 64 // share[1], {}
    while adversary.step_number < until:
        number = adversary.step_number * 64 + share[0] * part + torch.arange(part)
        batch = rows.take(number % len(rows.row))
        adversary.step(batch._replace(row=noise.keys(0, number)))
        if adversary.step_number == 6 and share[0] == 0:  # the first worker alone knows it
            averaged = adversary.averaged().items()
            best = {key: value.clone() for key, value in averaged if key.startswith("recogniser.")}
        if adversary.between:
            adversary.go_back(best)
    return adversary


def weights(adversary: Adversary) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in adversary.averaged().values()])


def worker(rank, port, path, task, rows):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    adversary = stepped(started(task, rows), rows, 20, (rank, 2))
    if rank == 0:
        torch.save(weights(adversary), path)
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads outlive the group


def test_two_workers_with_half_the_rows_equal_one_with_all(trained, tmp_path, free_port):
    model, job = trained
    rows = fidelity.joined(split(job, model.task, "train"), 10**6)
    # At low rates, for rounding grows with them.
    slow = {"critic_rate": 5e-5, "recogniser_rate": 5e-5, "steps": 12, "critic_steps": 8}
    task = dataclasses.replace(model.task, **slow)
    mp.spawn(worker, (free_port, tmp_path / "weights", task, rows), nprocs=2)
    start, alone = started(task, rows), stepped(started(task, rows), rows, 20)
    assert (weights(alone) - weights(start)).abs().max() > 2e-4
    assert (torch.load(tmp_path / "weights") - weights(alone)).abs().max() < 1e-5


def test_a_run_taken_up_again_is_the_run_never_put_down(trained):
    model, job = trained
    rows = fidelity.joined(split(job, model.task, "train"), 10**6)
    task = dataclasses.replace(model.task, steps=8)
    whole = stepped(started(task, rows), rows, 12)
    for put_down in (5, 10):  # in the one stage and in the other
        first = stepped(started(task, rows), rows, put_down)
        second = Adversary(task, seed=0)
        second.load(*(first.state()[0], first.averaged(), first.state()[1]))
        assert torch.equal(weights(stepped(second, rows, 12)), weights(whole))


def test_a_critic_learns_beside_the_curves_of_the_best_moment(tmp_path, monkeypatch):
    """Curves that are learned at such a rate are soon worse than they were."""
    settings = {"steps": 60, "critic_steps": 5, "recogniser_rate": 0.1}
    monkeypatch.setattr("aigc_ray.worker.DRAW_EVERY", 1e9)
    summary = learned_from(tmp_path, monkeypatch, lambda table: table, settings)
    assert summary["training"]["chosen_at_step"] < 60
    history = storage.read_json(f"{summary['uri']}/progress.json")["history"]
    assert [entry["step"] for entry in history] == [*range(3, 61, 3), *range(61, 66)]
    assert all(set(entry["validation"]) == {"nll"} for entry in history)  # no pairs are counted
    pictures = [path.name for path in Path(summary["uri"], "samples").iterdir()]
    assert pictures == ["step-0000065.png"]
    likelihoods = [entry["validation"]["nll"] for entry in history]
    assert likelihoods[19] > min(likelihoods)
    assert likelihoods[20:] == [min(likelihoods)] * 5
    model = Model.open(Path(summary["uri"]) / "model")
    adversary = Adversary(model.task, seed=7)
    best, _ = checkpoint.load(f"{summary['uri']}/checkpoints", adversary)
    assert set(best) == {
        f"recogniser.{key}" for key in adversary.networks["recogniser"].state_dict()
    }
    for key, value in best.items():
        assert torch.equal(adversary.networks.state_dict()[key], value)
        assert torch.equal(model.members[0].state_dict()[key], value)
    assert adversary.networks["critic"].state_dict()["body.4.weight"].any()


def test_an_ensemble_answers_with_the_mean_of_its_members_curves(tmp_path, monkeypatch):
    settings = {"members": 2, "steps": 20, "critic_steps": 0}
    summary = learned_from(tmp_path, monkeypatch, lambda table: table, settings)
    model = Model.open(Path(summary["uri"]) / "model")
    batch = model.task.encode({"age": np.array([50.0, 70.0])}, torch.arange(2))
    first, second = (model.task.recognise(one, batch)["survival"] for one in model.members)
    assert (first - second).abs().max() > 1e-3
    told = model.recognise(batch)
    torch.testing.assert_close(told["survival"], (first + second) / 2)
    assert (told["survival_spread"] > 0).any()


def test_a_model_is_evaluated_on_its_own_patients_and_on_others(tmp_path, monkeypatch):
    summary = learned_from(tmp_path, monkeypatch, lambda table: table, {"steps": 40})
    model = f"{summary['uri']}/model"
    own = evaluate(model, str(tmp_path / "data"), changes={"transfer_steps": 2})
    assert own["metrics"]["harrell_c"] > 0.6
    low, high = own["intervals"]["harrell_c"]
    assert low < own["metrics"]["harrell_c"] < high
    assert 0 < own["generation"]["coverage"] <= 1
    assert "what happened (stairs)" in Path(own["report"]).read_text()
    cohort.write(tmp_path / "others.csv", 300, seed=9)
    ingest(Prognosis(), str(tmp_path / "others.csv"), str(tmp_path / "others"), parallel=0)
    other = evaluate(model, str(tmp_path / "others"))
    assert other["metrics"]["harrell_c"] > 0.6
    assert other["metrics"] != own["metrics"]
    assert other["generation"] is None  # elsewhere a difference would be the place's


# --- what is wrong with the data ----------------------------------------------------------------


def learned_from(folder: Path, monkeypatch, change, more: dict | None = None) -> dict:
    """The summary of a short training on simulated patients whose table was changed."""
    monkeypatch.setenv("AIGC_HOME", str(folder / "home"))
    cohort.write(folder / "patients.csv", 300)
    table = change(pd.read_csv(folder / "patients.csv"))
    table.to_csv(folder / "patients.csv", index=False)
    ingest(Prognosis(), str(folder / "patients.csv"), str(folder / "data"), parallel=0)
    settings = {"num_workers": 0, "steps": 2, "transfer_steps": 0, "bins": 4} | (more or {})
    return train("prognosis", str(folder / "data"), settings, register=False)


@pytest.mark.parametrize(
    "leak",
    [
        lambda table: table["time"] * -7 + 3,
        lambda table: table["time"].rank(pct=True).mul(25).round().map("ward {:g}".format),
    ],
    ids=["a number", "a category"],
)
def test_a_feature_that_holds_the_outcome_is_named(tmp_path, monkeypatch, capsys, leak):
    summary = learned_from(tmp_path, monkeypatch, lambda table: table.assign(stay=leak(table)))
    (warning,) = summary["warnings"]
    assert warning.startswith("stay by itself ranks patients with a concordance of ")
    assert f"warning: {warning}" in capsys.readouterr().err
    model = Model.open(Path(summary["uri"]) / "model")
    assert warning in card(model.info)
    assert warning in (Path(summary["uri"]) / "report.html").read_text()


def test_a_column_that_never_differs_does_no_harm(tmp_path, monkeypatch):
    summary = learned_from(tmp_path, monkeypatch, lambda table: table.assign(site=3, kind="x"))
    assert summary["warnings"] == []
    model = Model.open(Path(summary["uri"]) / "model")
    usual, other = model.predict([{"age": 60, "site": 3}, {"age": 60, "site": 4}])
    assert 0 < usual["curve"]["survival"][-1] < 1
    assert "site=4 lies outside" in other["warnings"][0]


def test_nothing_is_learned_where_nobody_has_the_event(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="event: it happened to none of the training rows"):
        learned_from(tmp_path, monkeypatch, lambda table: table.assign(event=0))
