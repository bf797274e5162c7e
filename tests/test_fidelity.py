"""What generated rows are worth is told from what they are: good, poor, or copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aigc_ray import fidelity, noise
from aigc_ray.model import Model
from tests.service import tiny


class Fixed(torch.nn.Module):
    """Stands for a generator: what it makes is in its hand."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, z, label, known):
        return self.make(z, label)


def images(label: torch.Tensor, seed: int) -> torch.Tensor:
    """(B, 1, 28, 28): noise, with a bright square of one size where the label is 1."""
    rng = torch.Generator().manual_seed(seed)
    picture = 0.3 * torch.randn(len(label), 1, 28, 28, generator=rng) - 0.5
    picture[:, :, 10:18, 10:18] += 1.2 * label.float()[:, None, None, None]
    return picture.clamp(-1, 1)


def rows(n: int, seed: int):
    task = tiny()
    label = torch.arange(n) % 2
    batch = task.encode({"label": label.numpy()}, noise.keys(seed, torch.arange(n)))
    batch.value["image"] = images(label, seed)
    return batch


@pytest.fixture(scope="module")
def real():
    return {"train": rows(400, 1), "val": rows(200, 2), "test": rows(200, 3)}


def model(make) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = tiny().networks()
    networks["generator"] = Fixed(make)
    return Model(tiny(), [networks], {})


def measured(make, real):
    return fidelity.fidelity(model(make), [real["train"]], [real["val"]], [real["test"]])


def alike(z, label):
    return images(label, int(z[0, 0].abs() * 1e6))


def test_rows_like_real_ones_are_as_near_to_them_as_real_ones_are(real):
    found = measured(alike, real)
    assert found["kid_ratio"] < 2
    assert abs(found["coverage"] - found["coverage_real"]) < 0.15
    assert found["nn_auc"]["low"] < 0.5 < found["nn_auc"]["high"]
    assert found["copy_rate"]["value"] < 0.04 and not found["copies"]


def test_rows_of_one_kind_are_far_from_real_ones_and_cover_few(real):
    found = measured(lambda z, label: torch.full((len(z), 1, 28, 28), -0.5), real)
    assert found["kid"]["low"] > found["kid_real"]["high"]
    assert found["coverage"] < 0.2


def test_copies_are_told_however_good_they_look(real):
    known = real["train"].value["image"]

    def copied(z, label):
        place = (z[:, 0].abs() * 1e6).long() % len(known)
        return known[place]

    found = measured(copied, real)
    assert found["copies"] and found["copy_rate"]["value"] == 1
    assert found["nn_auc"]["low"] > 0.9
    assert found["plain_nn_auc"]["value"] == 1


def test_a_few_copies_among_good_rows_are_told(real):
    known = real["train"].value["image"]

    def some(z, label):
        made = alike(z, label)
        here = z[:, 1] > 1.0  # one in six
        made[here] = known[(z[here, 0].abs() * 1e6).long() % len(known)]
        return made

    found = measured(some, real)
    assert found["copies"] and 0.1 < found["copy_rate"]["value"] < 0.3


def test_a_class_that_is_rarer_among_the_test_rows_is_no_difference_in_looks(real):
    label = (torch.arange(200) % 10 == 0).long()
    batch = tiny().encode({"label": label.numpy()}, noise.keys(9, torch.arange(200)))
    batch.value["image"] = images(label, 9)
    found = fidelity.fidelity(model(alike), [real["train"]], [real["val"]], [batch])
    assert found["kid_real"]["low"] < 0.05 and found["kid_ratio"] < 2


def test_from_good_rows_as_much_is_learned_as_from_real_ones_and_from_poor_ones_nothing(real):
    good, poor = (
        fidelity.transfer(model(make), [real["train"]], [real["test"]], steps=30, batch_size=32)
        for make in (alike, lambda z, label: images(torch.zeros(len(z)), 5))
    )
    assert good["trtr_auc"] > 0.95 and good["tstr_over_trtr"] > 0.95
    assert poor["tstr_auc"] < 0.8 and poor["trtr_auc"] == good["trtr_auc"]


def test_the_generator_itself_stays_as_it_was(real):
    made = model(alike)
    before = {name: value.clone() for name, value in made.members[0].state_dict().items()}
    fidelity.transfer(made, [real["train"]], [real["test"]], steps=2, batch_size=8)
    assert all(torch.equal(before[k], v) for k, v in made.members[0].state_dict().items())


def test_large_rows_are_projected_and_keep_their_distances():
    rng = np.random.default_rng(0)
    wide = torch.from_numpy(rng.normal(size=(20, 9000))).float()
    near = fidelity._projected(wide)
    assert near.shape == (20, fidelity.PROJECTED)
    far, kept = torch.cdist(wide, wide), torch.cdist(near, near)
    off = ~torch.eye(20, dtype=torch.bool)
    assert (kept[off] / far[off] - 1).abs().max() < 0.25
