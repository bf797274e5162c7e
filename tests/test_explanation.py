"""Heat maps by hiding: known answers, a gate that fails what it should, and a picture."""

from __future__ import annotations

import copy
import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from aigc_ray import explanation
from aigc_ray.blocks import ResNet18
from aigc_ray.errors import UserError
from aigc_ray.explanation import gate, heat, overlay
from aigc_ray.schema import Field, Schema
from aigc_ray.task import Batch
from aigc_ray.tasks.diagnosis.networks import SIZES
from aigc_ray.tasks.diagnosis.task import Diagnosis
from tests import service, toys

TASK = service.tiny()  # two classes, one channel, 28 pixels
SQUARE = 7  # pixels a side


def rows(image):
    count = len(image)
    known = {"image": torch.ones(count, dtype=torch.bool)}
    return Batch({"image": image}, known, torch.ones(count), torch.arange(count))


def ones(image):
    return torch.ones(len(image), dtype=torch.int64)


def networks(recogniser):
    return nn.ModuleDict({"recogniser": recogniser.eval()})


class Scores(nn.Module):
    """Logits (−s, s) of what a function sees in the images, whatever the weights are."""

    def __init__(self, see):
        super().__init__()
        self.see, self.unused, self.seen = see, nn.Linear(4, 4), []

    def forward(self, image):
        self.seen.append(len(image))
        score = self.see(image)
        return torch.stack([-score, score], 1)


def quadrant(image):
    return image[:, :, :14, :14].mean((1, 2, 3))


def edges(image):
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    return F.conv2d(image, torch.stack([across, across.T])[:, None]).abs().mean((1, 2, 3))


def squares(count, seed, side=28):
    """Noise, with a bright square in every second row; the squares' corners, (count, 2)."""
    random = torch.Generator().manual_seed(seed)
    image = 0.3 * torch.randn(count, 1, side, side, generator=random) - 0.5
    label = torch.arange(count) % 2
    corner = torch.randint(0, side - SQUARE, (count, 2), generator=random)
    for one, (y, x) in zip(image[1::2], corner[1::2], strict=True):
        one[0, y : y + SQUARE, x : x + SQUARE] += 1
    return image.clamp(-1, 1), label, corner


@pytest.fixture(scope="module")
def trained():
    """A ResNet-18 that tells rows with a square from rows without."""
    image, label, _ = squares(512, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recogniser = ResNet18(1, 2, width=16)
        optimizer = torch.optim.AdamW(recogniser.parameters(), 2e-3)
        for step in range(64):
            part = slice(32 * step % 512, 32 * step % 512 + 32)
            optimizer.zero_grad()
            F.cross_entropy(recogniser(image[part]), label[part]).backward()
            optimizer.step()
    return networks(recogniser)


# --- the map ----------------------------------------------------------------------------------


def test_hiding_one_bright_pixel_is_solved_by_hand():
    image = torch.full((1, 1, 28, 28), -1.0)
    image[:, :, 3, 3] = 1
    found = heat(TASK, [networks(Scores(lambda x: x[:, 0, 3, 3]))], rows(image), ones(image))
    assert found.shape == (1, 28, 28) and found.dtype == torch.float32
    # In its place comes the mean of the 49 pixels around. One patch covers the corner, and it
    # covers the bright pixel too. None that covers row 10 or later does: patches begin at rows
    # 0, 3, 6 ... and are 7 high.
    assert torch.isclose(found[0, 0, 0], torch.tensor(2 - 2 / 49))
    assert torch.all(found >= 0) and torch.all(found[0, 10:] == 0)
    other = heat(TASK, [networks(Scores(lambda x: x[:, 0, 3, 3]))], rows(image), 0 * ones(image))
    assert torch.allclose(other, -found)  # what speaks for one class speaks against the other


def test_an_image_of_one_level_a_channel_has_nothing_to_hide():
    field = Field(name="image", kind="image", parts=("input",), shape=(3, 24, 40))
    task = Diagnosis(schema=Schema((field,)))
    image = torch.tensor([0.25, -0.5, 1])[None, :, None, None].expand(2, 3, 24, 40).clone()
    image[1, :, :6, -10:] = -1  # the place of one patch, in an image wider than high
    members = [networks(Scores(lambda x: x.mean((1, 2, 3))))]
    found = heat(task, members, rows(image), ones(image))
    assert found.shape == (2, 24, 40) and found[0].abs().max() < 1e-6
    row, column = divmod(int(found[1].argmin()), 40)
    assert row < 9 and column >= 27  # there or at its edge, where more patches reach it


def test_a_map_points_at_what_the_network_was_taught(trained):
    image, label, corner = squares(32, seed=1)
    assert (trained["recogniser"](image).argmax(1) == label).all()
    found = heat(TASK, [trained], rows(image[1::2]), label[1::2])
    for one, (y, x) in zip(found, corner[1::2].tolist(), strict=True):
        top, left = divmod(int(one.argmax()), 28)
        assert y - 2 <= top < y + SQUARE + 2 and x - 2 <= left < x + SQUARE + 2


def test_a_row_has_the_same_map_whatever_shares_its_batch(trained):
    image, label, _ = squares(5, seed=2)
    together = heat(TASK, [trained], rows(image), label)
    alone = [heat(TASK, [trained], rows(image[[n]]), label[[n]]) for n in range(5)]
    assert torch.equal(torch.cat(alone), together)
    with torch.inference_mode():  # as serving calls it
        assert torch.equal(heat(TASK, [trained], rows(image), label), together)


def test_an_ensembles_map_is_the_mean_of_its_members(trained):
    image, label, _ = squares(2, seed=3)
    other = networks(Scores(edges))
    alone = [heat(TASK, [one], rows(image), label) for one in (trained, other)]
    both = heat(TASK, [trained, other], rows(image), label)
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_map_costs_at_most_eighty_passes_and_bounded_memory(size):
    recogniser = Scores(quadrant)
    image = torch.zeros(1, 3, size, size)
    heat(TASK, [networks(recogniser)], rows(image), ones(image))
    assert 49 <= sum(recogniser.seen) <= 80
    assert max(recogniser.seen) * size**2 <= explanation.PIXELS


TEXT = Schema((Field(name="note", kind="text", parts=("input",)),))


@pytest.mark.parametrize(
    "task", [toys.Letters(), toys.Ring(schema=TEXT), toys.Ring(schema=Schema())]
)
def test_other_inputs_are_refused(task):
    batch = Batch({}, {}, torch.ones(1), torch.arange(1))
    for function in (heat, gate):
        with pytest.raises(UserError, match=f"^explanations are made for images; {task.name} has"):
            function(task, [], batch, torch.zeros(1, dtype=torch.int64))


def test_the_command_line_does_not_wait_for_captum():
    code = "import sys, aigc_ray.cli, aigc_ray.explanation; assert 'captum' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- its gate ---------------------------------------------------------------------------------


def test_maps_of_a_trained_network_pass_and_leave_it_unchanged(trained):
    image, _, _ = squares(8, seed=4)
    weights, state = copy.deepcopy(trained.state_dict()), torch.get_rng_state()
    found = gate(TASK, trained, rows(image), ones(image))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["passes"] and len(found["correlation"]) == 5
    assert (found["method"], found["limit"], found["rows"]) == ("occlusion", 0.5, 8)
    assert all(torch.equal(value, weights[name]) for name, value in trained.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert gate(TASK, trained, rows(image), ones(image)) == found
    assert gate(TASK, trained, rows(image), ones(image), seed=1) != found


def test_layers_are_drawn_anew_from_the_output_down_until_none_is_learned(trained, monkeypatch):
    states = []

    def spy(task, members, batch, target):
        states.append(copy.deepcopy(members[0].state_dict()))
        return heat(task, members, batch, target)

    monkeypatch.setattr(explanation, "heat", spy)
    image, _, _ = squares(1, seed=5)
    gate(TASK, trained, rows(image), ones(image))
    learned, *depths = states
    changed = [
        {name for name in one if not torch.equal(one[name], learned[name])} for one in depths
    ]
    assert all(before < after for before, after in itertools.pairwise(changed))
    assert "recogniser.head.weight" in changed[0] and "recogniser.stem.weight" not in changed[3]
    # Running statistics too: another network ends as the same random one.
    gate(TASK, networks(ResNet18(1, 2, width=16)), rows(image), ones(image))
    assert all(torch.equal(value, depths[-1][name]) for name, value in states[-1].items())


def test_a_map_of_edges_alone_fails():
    image, _, _ = squares(4, seed=6)
    found = gate(TASK, networks(Scores(edges)), rows(image), ones(image))
    assert found["correlation"] == [1.0] * 5 and not found["passes"]


@pytest.mark.parametrize(
    "see",
    [
        lambda image: torch.full((len(image),), 0.3),  # ignores its input
        lambda image: 20 + 1e-4 * quadrant(image),  # but for rounding
        lambda image: quadrant(image) * float("nan"),
    ],
)
def test_constant_maps_fail(see):
    image, _, _ = squares(4, seed=7)
    found = gate(TASK, networks(Scores(see)), rows(image), ones(image))
    assert found["correlation"] == [None] * 5 and not found["passes"]
    json.dumps(found, allow_nan=False)


def test_blank_images_and_padding_are_left_out(trained):
    image, _, _ = squares(4, seed=8)
    more = torch.cat([image, torch.full((1, 1, 28, 28), -1.0), image[:1]])
    batch = rows(more)._replace(weight=torch.tensor([1.0, 1, 1, 1, 1, 0]))
    alone = gate(TASK, trained, rows(image), ones(image))
    assert gate(TASK, trained, batch, ones(more)) == alone and alone["rows"] == 4
    nothing = gate(TASK, trained, rows(more[4:5]), ones(more[4:5]))
    assert nothing["rows"] == 0 and not nothing["passes"]


# --- its picture ------------------------------------------------------------------------------


def opened(data):
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "PNG" and picture.mode == "RGB"
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 28, 28), (224, 224)), ((3, 100, 100), (300, 300)), ((1, 256, 256), (256, 256)),
     ((1, 30, 60), (240, 480))],
)  # fmt: skip
def test_an_overlay_is_enlarged_by_a_whole_number(shape, size):
    assert opened(overlay(torch.zeros(shape), torch.zeros(shape[1:]))).shape == (*size, 3)


def test_orange_speaks_for_blue_against_and_what_says_little_stays_grey():
    image, _, _ = squares(1, seed=9)
    strength = torch.zeros(28, 28)
    strength[2:8, 2:8], strength[20:26, 20:26], strength[2:8, 20:26] = 3, -1.5, 0.2
    shown = opened(overlay(image[0], strength))
    red, _, blue = np.moveaxis(shown[::8, ::8][:28, :28], 2, 0)
    assert np.all(red[3:7, 3:7] > blue[3:7, 3:7] + 60)
    assert np.all(blue[21:25, 21:25] > red[21:25, 21:25] + 40)
    assert np.all(red[10:18] == blue[10:18]) and np.all(red[3:7, 21:25] == blue[3:7, 21:25])
    assert overlay(image[0], 1e-3 * strength) == overlay(image[0], strength)
    plain = opened(overlay(image[0], 0 * strength))
    assert np.all(plain == plain[:, :, :1])
