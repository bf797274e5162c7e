"""What everything stands on: noise, settings, losses, blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from aigc_ray import config, losses, noise
from aigc_ray.blocks import ResNet18
from aigc_ray.errors import UserError
from aigc_ray.schema import Field, Schema
from aigc_ray.tasks.diagnosis import networks
from aigc_ray.tasks.diagnosis.augment import augment


def mean(value, weight):
    return (value * weight).sum() / weight.sum()


# --- noise ------------------------------------------------------------------------------------


def test_noise_is_normal_and_uniform():
    row = noise.keys(0, torch.arange(200))
    normal = noise.normal(row, "z", (50,)).flatten().numpy()
    uniform = noise.uniform(row, "u", (50,)).flatten().numpy()
    assert stats.kstest(normal, "norm").pvalue > 0.01
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(normal[:-1], normal[1:])[0, 1]) < 0.03


def test_noise_belongs_to_its_row_stream_and_seed():
    row = noise.keys(0, torch.arange(8))
    whole = noise.normal(row, "z", (4,))
    assert torch.equal(noise.normal(row[5:], "z", (4,)), whole[5:])
    assert not torch.isclose(noise.normal(row, "other", (4,)), whole).any()
    assert not torch.isclose(noise.normal(noise.keys(1, torch.arange(8)), "z", (4,)), whole).any()


# --- settings ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 4
    kind: Literal["a", "b"] = "a"
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    task: Inner = Inner()
    flip: bool = False
    sizes: tuple[int, ...] = (1, 2)


def test_settings_change_by_dotted_key_or_by_their_last_word():
    changed = config.override(
        Outer(), {"task.width": "8", "kind": "b", "rate": "1e-3", "flip": "true", "sizes": "3,4"}
    )
    assert changed == Outer(task=Inner(width=8, kind="b", rate=1e-3), flip=True, sizes=(3, 4))
    assert config.override(changed, {"rate": "none"}).task.rate is None
    assert config.override(Outer(), config.to_json(changed)) == changed


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("widht", "8", "no setting 'widht'; did you mean width?"),
        ("width", "2.5", "task.width is a whole number; got '2.5'|width is a whole number"),
        ("kind", "c", "kind is one of a, b; got 'c'"),
        ("flip", "perhaps", "flip is true or false; got 'perhaps'"),
        ("rate", "fast", "rate is a number; got 'fast'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(key, value, sentence):
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        config.override(Outer(), {key: value})


def test_a_word_that_is_no_setting_is_refused():
    with pytest.raises(UserError, match="'steps' is not a setting"):
        config.parse(["steps"])


def test_a_schema_survives_json():
    image = Field(name="image", kind="image", parts=("generated", "input"), shape=(1, 28, 28))
    label = Field(name="label", kind="category", parts=("condition",), values=("a", "b"))
    schema = Schema((image, label))
    assert Schema.from_json(schema.to_json()) == schema
    assert list(schema.part("condition")) == [label]
    assert label.index("b") == 1
    with pytest.raises(UserError, match="label is one of a, b; got 'c'"):
        label.index("c")
    with pytest.raises(UserError, match="no field 'age'"):
        schema["age"]


# --- losses -----------------------------------------------------------------------------------


def test_losses_have_their_known_values():
    zero, one = torch.zeros(4), torch.ones(4)
    assert math.isclose(losses.relativistic(zero, zero, one, mean), math.log(2), rel_tol=1e-6)
    # −(E log D(x) + E log(1 − D(G(z)))) at D = 1/2 is 2 log 2 (Goodfellow et al. 2014)
    assert math.isclose(losses.classic_critic(zero, zero, one, mean), 2 * math.log(2), rel_tol=1e-6)
    assert math.isclose(losses.classic_generator(zero, one, mean), math.log(2), rel_tol=1e-6)
    assert losses.classic_critic(5 * one, -5 * one, one, mean) < 0.02


def test_the_penalty_is_the_squared_slope_of_each_row():
    x = torch.randn(5, 2, 3).requires_grad_()
    slope = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])
    penalty = losses.gradient_penalty((x * slope).sum((1, 2)), x)
    assert torch.allclose(penalty, slope.square().sum().expand(5))


# --- networks ---------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_founding_network_is_buildable_only_with_strides():
    with torch.device("meta"):
        as_written = networks.ClassicCritic(3, 256, 2, stride=1)
        strided = networks.ClassicCritic(3, 256, 2)
    first = as_written.dense[1]
    assert first.weight.numel() == 256 * 256 * 1024 * 4096 == 274_877_906_944
    assert strided.dense[1].weight.numel() == 8 * 8 * 1024 * 4096
    assert 2.7e8 < count(strided) < 2.9e8


def test_resnet18_is_the_published_one():
    # 11.17 million weights with a 3x3 stem and ten classes, as commonly given for CIFAR-10
    assert count(ResNet18(3, 10)) == 11_173_962


@pytest.mark.parametrize("size", networks.SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_size_go_through(size, channels):
    generator = networks.Generator(channels, size, 3, width=0.125)
    critic = networks.Critic(channels, size, 3, width=0.125)
    label, known = torch.tensor([0, 2]), torch.tensor([True, False])
    image = generator(torch.randn(2, networks.NOISE), label, known)
    assert image.shape == (2, channels, size, size) and image.abs().max() <= 1
    logits, classes = critic(image, label, known)
    assert logits.shape == (2,) and classes.shape == (2, 3)


@pytest.mark.parametrize("size", [28, 100, 256])
def test_the_classic_pair_fits_together(size):
    with torch.device("meta"):
        generator = networks.ClassicGenerator(1, size, 2)
        critic = networks.ClassicCritic(1, size, 2)
        label, known = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.bool)
        image = generator(torch.randn(2, networks.NOISE), label, known)
        assert image.shape == (2, 1, size, size)
        assert critic(image, label, known)[0].shape == (2,)


def test_rows_do_not_touch_each_other_in_the_critic():
    critic = networks.Critic(1, 28, 2, width=0.25)
    image, label = torch.randn(6, 1, 28, 28), torch.tensor([0, 1, 0, 1, 0, 1])
    known = torch.ones(6, dtype=torch.bool)
    together = critic(image, label, known)[0]
    alone = torch.cat([critic(image[i : i + 1], label[i : i + 1], known[:1])[0] for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-5)


# --- augmentation -----------------------------------------------------------------------------


def test_augmentation_changes_as_many_rows_as_its_strength_says():
    image = torch.rand(400, 1, 28, 28) * 2 - 1
    row = noise.keys(0, torch.arange(400))
    assert augment(image, row, 0.0, flip=False, stream="a") is image
    changed = augment(image, row, 0.3, flip=False, stream="a")
    share = float((changed != image).flatten(1).any(1).float().mean())
    assert abs(share - (1 - 0.7**4)) < 0.08  # any of four changes
    again = augment(image[200:], row[200:], 0.3, flip=False, stream="a")
    assert torch.equal(again, changed[200:])


def test_augmentation_has_the_second_derivative_that_a_penalty_needs():
    image = torch.rand(4, 1, 28, 28, requires_grad=True)
    weight = torch.rand(1, 28, 28, requires_grad=True)
    row = noise.keys(0, torch.arange(4))
    logits = (augment(image, row, 1.0, flip=True, stream="a") * weight).square().sum((1, 2, 3))
    losses.gradient_penalty(logits, image).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0
