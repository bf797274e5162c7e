"""What the diagnosis networks learn from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aigc_ray import losses, noise
from aigc_ray.adversary import Adversary
from aigc_ray.errors import UserError
from aigc_ray.schema import Field, Schema
from aigc_ray.task import Batch, Step
from aigc_ray.tasks.diagnosis import task as module
from aigc_ray.tasks.diagnosis.augment import retaken
from aigc_ray.tasks.diagnosis.task import Diagnosis

SCHEMA = Schema(
    (
        Field(name="image", kind="image", parts=("generated", "input"), shape=(1, 28, 28)),
        Field(name="label", kind="category", parts=("condition", "target"), values=("a", "b")),
    )
)
TASK = Diagnosis(
    schema=SCHEMA, width=0.125, recogniser_width=16, recogniser_augmentation=0, precision="fp32"
)


def rows(count: int) -> Batch:
    image = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    label = torch.arange(count) % 2
    known = torch.ones(count, dtype=torch.bool)
    return Batch(
        {"image": image, "label": label},
        {"image": known, "label": known},
        torch.ones(count),
        noise.keys(0, torch.arange(count)),
    )


def mean(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (value * weight).sum() / weight.sum()


def turn(number: int) -> Step:
    return Step(mean, number, 0.0, 0.0, lambda name, value: None)


def test_penalties_are_taken_at_some_steps_and_count_as_much_more_there():
    networks, real = Adversary(TASK, seed=0).networks, rows(8)
    draw = TASK.draw(networks, real)
    every = Diagnosis(**{**vars(TASK), "penalty_every": 1})
    none = Diagnosis(**{**vars(TASK), "penalty": 0.0})

    def loss(task: Diagnosis, number: int) -> float:
        return float(task._critic_loss(networks, real, draw, turn(number)).detach())

    one, without, due, spared = loss(every, 0), loss(none, 0), loss(TASK, 8), loss(TASK, 9)
    assert one > without and spared == pytest.approx(without)
    assert due - without == pytest.approx(TASK.penalty_every * (one - without), rel=1e-4)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64)])
def test_the_generator_starts_as_a_gaussian_of_each_class(channels, size):
    """Two classes that vary along an axis each: the first draws have their means and spreads."""
    random = torch.Generator().manual_seed(0)
    label = torch.arange(400) % 2
    smooth = torch.nn.functional.interpolate(
        torch.randn(4, channels, 4, 4, generator=random), size, mode="bilinear"
    )
    score = torch.randn(400, 1, 1, 1, generator=random)
    image = torch.tanh(0.5 * smooth[label] + 0.2 * score * smooth[2 + label])
    known = torch.ones(400, dtype=torch.bool)
    real = Batch(
        {"image": image, "label": label},
        {"image": known, "label": known},
        torch.ones(400),
        noise.keys(0, torch.arange(400)),
    )
    fields = (replace(SCHEMA["image"], shape=(channels, size, size)), SCHEMA["label"])
    task = replace(TASK, schema=Schema(fields))
    adversary = Adversary(task, seed=0)
    adversary.prepare(iter([real]))
    for networks in (adversary.networks, adversary.average):
        made = task.draw(networks, real).value["image"].detach()
        for k in (0, 1):
            ours, theirs = made[label == k], image[label == k]
            assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.1
            assert ours.std(0).mean() == pytest.approx(float(theirs.std(0).mean()), rel=0.15)
    unknown = real._replace(known={**real.known, "label": ~known})
    made = task.draw(adversary.networks, unknown).value["image"].detach()
    assert (made.mean(0) - image.mean(0)).abs().max() < 0.15


def test_a_perturbed_image_hangs_on_its_row_alone_and_stays_an_image():
    real = rows(16)
    moved = TASK.perturb(real).value["image"]
    assert moved.shape == real.value["image"].shape and moved.abs().max() <= 1
    assert torch.equal(TASK.perturb(real.take(torch.tensor([5]))).value["image"][0], moved[5])
    learned = module.augment(real.value["image"], real.row, 1.0, flip=False, stream="elsewhere")
    assert torch.equal(moved, retaken(learned.clamp(-1, 1), real.row))
    assert not torch.equal(moved, learned.clamp(-1, 1))
    # A bright square becomes larger or smaller by up to a sixth each way, turned or not.
    square = torch.full((64, 1, 128, 128), -1.0)
    square[..., 40:88, 40:88] = 1.0
    area = (retaken(square, noise.keys(0, torch.arange(64))) > 0).float().sum((1, 2, 3)) / 48**2
    assert 0.7 < area.min() < 0.85 and 1.2 < area.max() < 1.4


def test_every_stage_of_the_generator_sees_the_components():
    torch.manual_seed(0)
    generator = module.Generator(1, 28, 2, width=0.125)
    torch.nn.init.normal_(generator.image.weight)
    for stage in generator.stages:
        torch.nn.init.normal_(stage.reduce.weight, std=0.1)
    condition = torch.randn(4, module.NOISE), torch.arange(4) % 2, torch.ones(4) > 0
    before = generator(*condition).detach()
    for layer in generator.sees:
        kept = layer.weight.detach().clone()
        torch.nn.init.zeros_(layer.weight)
        assert (generator(*condition) - before).abs().max() > 1e-3
        layer.weight.data.copy_(kept)


def test_a_class_of_one_image_starts_from_all_images():
    components = module.Generator(1, 28, 3, width=0.125).components
    real = rows(8)
    label = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
    components.fit(real.value["image"], label, torch.ones(8, dtype=torch.bool))
    assert torch.equal(components.axes[2], components.axes[3])
    assert not torch.equal(components.axes[1], components.axes[3])


@pytest.mark.parametrize("sure", [0.0, 1.0])
def test_a_recogniser_learns_from_generated_images_of_whose_class_the_critic_is_sure(
    sure, monkeypatch
):
    monkeypatch.setattr(module, "SURE", sure + 1e-9 if sure < 1 else sure)
    networks, real = Adversary(TASK, seed=0).networks.eval(), rows(64)
    draw = TASK.draw(networks, real)
    chosen = noise.uniform(real.row, "generated", ()) < TASK.generated_share
    assert 8 < int(chosen.sum()) < 32
    found = TASK._beside_loss(networks, real, draw, turn(0))
    image, weight = real.value["image"].clone(), torch.ones(64)
    if sure < 1:  # all are let in
        image[chosen], weight[chosen] = draw.value["image"][chosen], 0.5
    logits = networks["beside"](module.pad_crop(image, real.row, flip=False))
    wanted = mean(losses.recognition(logits, real.value["label"]), weight)
    torch.testing.assert_close(found, wanted)


def test_the_recogniser_learns_from_images_of_another_exposure():
    networks, real = Adversary(TASK, seed=0).networks.eval(), rows(64)
    plain, changed = (
        Diagnosis(**{**vars(TASK), "recogniser_augmentation": strength}) for strength in (0.0, 1.0)
    )
    image = module.pad_crop(real.value["image"], real.row, flip=False)
    other = module.augment(image, real.row, 1.0, flip=False, stream="recognised")
    for task, seen in ((plain, image), (changed, other)):
        found = task._recogniser_loss(networks, real, None, turn(0))
        wanted = losses.recognition(networks["recogniser"](seen), real.value["label"]).mean()
        torch.testing.assert_close(found, wanted)


def test_a_coarse_look_tells_a_negative_from_its_film():
    networks, real = Adversary(TASK, seed=0).networks.eval(), rows(4)
    look = TASK.recognise(networks, real)["look"]
    negative = real._replace(value=real.value | {"image": -real.value["image"]})
    assert look.shape == (4, module.COARSE**2)
    torch.testing.assert_close(TASK.recognise(networks, negative)["look"], -look)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"generated_share": 0.7}, "generated_share lies between 0 and 0.5"),
        ({"penalty_every": 0}, "penalty_every is at least 1"),
    ],
)
def test_settings_that_cannot_be(setting, said):
    with pytest.raises(UserError, match=said):
        Diagnosis(**setting)


def test_without_a_share_of_generated_rows_there_is_no_second_recogniser():
    task = Diagnosis(schema=SCHEMA, generated_share=0)
    assert set(task.networks()) == {"generator", "critic", "recogniser"}
    assert {player.network for player in task.stages()[0].players} == set(task.networks())
