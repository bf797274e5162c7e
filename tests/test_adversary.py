"""The loop holds the contract: it learns, any number of workers is one, and it can be put down."""

from __future__ import annotations

import json
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from aigc_ray.adversary import MAX_SKIPPED, Adversary
from aigc_ray.task import Player
from tests.toys import OPTIMIZER, Letters, Mlp, Ring, Waiting, batch

TOYS = [Ring, Waiting, Letters]


def run(task, steps, share=(0, 1)):
    adversary = Adversary(task, seed=0)
    for step in range(steps):
        figures = adversary.step(batch(task, step, share=share))
        assert all(torch.isfinite(value).all() for value in figures.values())
    return adversary


def weights(adversary):
    return torch.cat([value.double().flatten() for value in adversary.averaged().values()])


def test_continuous_samples_reach_their_condition():
    adversary = run(Ring(steps=400), 400)
    real = batch(adversary.task, 999)
    with torch.no_grad():
        fake = adversary.task.draw(adversary.average, real).value["point"]
        logits = adversary.average["recogniser"](real.value["point"])
    assert torch.all((fake.mean(1) > 0) == (real.value["side"][:, 0] > 0))
    assert abs(fake.abs().mean() - 2) < 0.3
    assert torch.all((logits > 0) == (real.value["side"] > 0))


def test_a_rate_may_rise_before_it_falls():
    class Warm(Ring):
        def stages(self):
            (stage,) = super().stages()
            slow = [
                player._replace(optimizer=player.optimizer._replace(warm_up=0.2))
                for player in stage.players
            ]
            return (stage._replace(players=tuple(slow)),)

    pairs = []
    for steps in range(8):
        warm, plain = (run(task(steps=20), steps) for task in (Warm, Ring))
        rates = [
            next(iter(one._optimizers.values())).param_groups[0]["lr"] for one in (warm, plain)
        ]
        pairs.append(rates[0] / rates[1])
    assert pairs == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])


def test_statistics_are_fitted_on_the_cpu_wherever_the_networks_train(monkeypatch):
    told = []

    class Fitted(Ring):
        def prepare(self, networks, rows):
            told.append("fitted")

    adversary = Adversary(Fitted(steps=1), seed=0)
    adversary.device = "cuda"
    monkeypatch.setattr(adversary.networks, "to", told.append)
    adversary.prepare(iter([]))
    assert told == ["cpu", "fitted", "cuda"]


def test_a_player_may_join_late_as_a_copy_of_another():
    class Twofold(Ring):
        def networks(self):
            made = super().networks()
            made["beside"] = Mlp(2, 1)
            return made

        def stages(self):
            def beside(networks, real, fake, step):
                logits = networks["beside"](real.value["point"])
                return step.mean(logits.square().mean(1), real.weight)

            (stage,) = super().stages()
            late = Player("beside", beside, OPTIMIZER, 0.75, "recogniser")
            return (stage._replace(players=(*stage.players, late)),)

    task = Twofold(steps=20)
    before, joined = run(task, 15), run(task, 16)
    start = Adversary(task, seed=0).networks["beside"].state_dict()
    for name, value in before.networks["beside"].state_dict().items():
        assert torch.equal(value, start[name])  # it has not moved
    # One step of its own away from what the recogniser was.
    was, now = (a.networks[n] for a, n in ((before, "recogniser"), (joined, "beside")))
    moved = [(b - a).abs().max() for a, b in zip(was.parameters(), now.parameters(), strict=True)]
    assert 0 < max(moved) <= 1.1 * OPTIMIZER.learning_rate
    # Taken up where it joins, it joins once and the same.
    again = Adversary(task, seed=0)
    tensors, plain = before.state()
    again.load(tensors, before.averaged(), plain)
    again.step(batch(task, 15))
    assert torch.equal(weights(again), weights(joined))


def test_censored_times_are_not_taken_for_short_ones():
    adversary = run(Waiting(steps=400), 400)
    x = torch.tensor([[-1.0], [0.0], [1.0]])
    with torch.no_grad():
        log_mean = adversary.average["generator"](x)[:, 0]
    assert torch.allclose(log_mean, x[:, 0], atol=0.35)  # the truth is mean = exp(x)


def test_discrete_samples_are_learned_through_weights():
    adversary = run(Letters(steps=400), 400)
    p = adversary.average["generator"]["letters"].softmax(1)
    assert p[2, 3] > 0.9  # the last letter is always the fourth
    assert p[0, 1] > 0.6 and p[0, 2:].sum() < 0.1  # the first is the second in 8 of 10


def worker(rank, world, port, path, name):
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    torch.set_num_threads(1)
    task = {toy.name: toy for toy in TOYS}[name](steps=50)
    adversary = run(task, 50, share=(rank, world))
    if rank == 0:
        torch.save(weights(adversary), path)
    dist.destroy_process_group()
    # gloo's threads outlive the group, and one that still frees a tensor would abort an interpreter
    # that is shutting down (pytorch/pytorch#179291).
    os._exit(0)


@pytest.mark.parametrize("toy", TOYS)
def test_two_workers_with_half_the_rows_equal_one_with_all(toy, tmp_path, free_port):
    path = tmp_path / "weights"
    mp.spawn(worker, (2, free_port, path, toy.name), nprocs=2)
    alone = weights(run(toy(steps=50), 50))
    start = weights(Adversary(toy(steps=50), seed=0))
    assert (alone - start).abs().max() > 1e-2  # they moved
    assert (torch.load(path) - alone).abs().max() < 1e-5


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("stop", [13, 25])  # within a pool of samples; at a change of stage
def test_a_run_taken_up_again_is_the_run_never_put_down(toy, stop):
    whole = run(toy(steps=50), 50)
    first = run(toy(steps=50), stop)
    tensors, plain = first.state()
    second = Adversary(toy(steps=50), seed=123)
    second.load(
        {name: value.clone() for name, value in tensors.items()},
        {name: value.clone() for name, value in first.averaged().items()},
        json.loads(json.dumps(plain)),
    )
    for step in range(stop, 50):
        second.step(batch(second.task, step))
    assert torch.equal(weights(second), weights(whole))


def test_padding_rows_change_nothing():
    task = Ring(steps=5)
    plain, padded = Adversary(task, seed=0), Adversary(task, seed=0)
    for step in range(5):
        real = batch(task, step)
        plain.step(real)
        doubled = real._replace(
            value={name: torch.cat([v, torch.full_like(v, 7.0)]) for name, v in real.value.items()},
            known={name: torch.cat([v, v]) for name, v in real.known.items()},
            weight=torch.cat([real.weight, torch.zeros(len(real.weight))]),
            row=torch.cat([real.row, real.row]),
        )
        padded.step(doubled)
    assert (weights(plain) - weights(padded)).abs().max() < 1e-6


def test_a_step_that_is_not_finite_is_skipped_and_a_run_of_them_ends_it():
    task = Ring(steps=100)
    adversary = Adversary(task, seed=0)
    before = {name: v.clone() for name, v in adversary.networks.state_dict().items()}
    broken = batch(task, 0)
    broken.value["point"][0, 0] = float("nan")
    adversary.step(broken)
    after = adversary.networks.state_dict()
    critic = [name for name in before if name.startswith("critic")]
    assert all(torch.equal(before[name], after[name]) for name in critic)
    with pytest.raises(FloatingPointError, match="not finite"):
        for _ in range(MAX_SKIPPED):
            adversary.step(broken)
