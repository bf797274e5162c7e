"""What speaks for an answer: one heat map for every task whose input is an image, and its gate.

A map is made by hiding (Zeiler and Fergus 2014, "Visualizing and understanding convolutional
networks", ECCV): where the score falls most, the picture speaks for the answer. It needs nothing of
a network but its score, and says what the network uses, not where a finding lies.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from aigc_ray.errors import UserError
from aigc_ray.task import Batch, Networks, Task

PIXELS = 1 << 17  # in one pass: 64 images of 28 pixels a side or 2 of 256; more is hardly faster
DEPTHS = 5  # at which the gate looks; a ResNet-18 has 41 layers
LIMIT = 0.5  # of the rank correlation with the map of a random network
FLAT = 1e-5  # of the score: less than this is rounding, not a map

SHOWN = 224  # pixels a side at least
FOR = (230, 97, 0)  # orange and blue are told apart with every kind of colour vision
AGAINST = (26, 133, 255)
OPAQUE, FAINT = 0.65, 0.1  # opacity of the largest value; share of it below which nothing is drawn


def heat(task: Task, members: Sequence[Networks], batch: Batch, target: Tensor) -> Tensor:
    """By how much hiding a place lowers the members' mean score, in the score's units.

    A patch of a quarter of the side moves by an eighth of it, 49 or 64 places an image; a pixel has
    the mean over the patches that cover it. Positive speaks for the target, negative against it.

    Args:
        members: networks in eval mode.
        target: (B,) int64, the class or label whose score is explained.

    Returns:
        (B, H, W) float32, for each row the same to the bit whatever shares its batch.
    """
    from captum.attr import Occlusion  # takes most of a second, and the command line is instant

    name = image_of(task)
    maps = []
    for row in range(len(target)):  # alone, so that its neighbours change neither sums nor memory

        def score(image: Tensor, row: int = row) -> Tensor:
            index = torch.full((len(image),), row, device=image.device)
            hidden = batch.take(index)
            hidden.value[name] = image
            every = [task.score(networks, hidden, target[index]) for networks in members]
            return torch.stack(every).float().mean(0)

        image = batch.value[name][row : row + 1]
        channels, height, width = image.shape[1:]
        patch = max(1, height // 4), max(1, width // 4)
        found: Tensor = Occlusion(score).attribute(
            image,
            sliding_window_shapes=(channels, *patch),
            strides=(channels, max(1, height // 8), max(1, width // 8)),
            # What lies around, smoothed: a black patch, or one of the image's mean level in a dark
            # lung, would be a finding put there rather than one taken away. On phantoms the maps
            # of two networks peaked on the lesion in 46 to 63 of 100, with black in 30, with the
            # mean level in 10 (chance: 3).
            baselines=_smooth(image, patch[0] | 1, patch[1] | 1),
            perturbations_per_eval=max(1, PIXELS // (height * width)),
        )
        maps.append(found[0, 0])  # all channels are hidden together and hold the same
    return torch.stack(maps).float()


def _smooth(image: Tensor, height: int, width: int) -> Tensor:
    """Each pixel's mean over the patch around it; edges repeat."""
    padded = F.pad(image, (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    return F.avg_pool2d(padded, (height, width), 1)


def possible(task: Task) -> bool:
    """Whether the recogniser sees an image."""
    field = next(task.schema.part("input"), None)
    return field is not None and field.kind == "image"


def image_of(task: Task) -> str:
    """The name of the image that the recogniser sees."""
    if not possible(task):
        raise UserError(f"explanations are made for images; {task.name} has none")
    return next(task.schema.part("input")).name


@torch.no_grad()
def gate(
    task: Task, networks: Networks, batch: Batch, target: Tensor, seed: int = 0
) -> dict[str, Any]:
    """Whether the maps show what the recogniser has learned, by cascading randomisation.

    Its layers are drawn anew from the output down to the input. A map that stays the same all the
    way is a picture of the image, not of the network (Adebayo et al. 2018, "Sanity checks for
    saliency maps", NeurIPS). Passing does not say that the network is right.

    Args:
        networks: in eval mode; they stay as they are.
        target: (B,) int64, the class or label whose score is explained.

    Returns:
        JSON: `correlation`, after each of five depths the mean over `rows` of the absolute rank
        correlation with the learned map, or None where a map is constant. The last one, of a wholly
        random recogniser, is at most `limit` where it `passes`. Blank images and padding are left
        out.
    """
    image = batch.value[image_of(task)].flatten(2)
    rows = ((image.amax(2) > image.amin(2)).any(1) & (batch.weight > 0)).nonzero()[:, 0]
    correlation: list[float | None] = [None] * DEPTHS
    if len(rows):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            correlation = _cascade(task, networks, batch.take(rows), target[rows])
    last = correlation[-1]
    return {
        "method": "occlusion",
        "correlation": correlation,
        "limit": LIMIT,
        "passes": last is not None and last <= LIMIT,
        "rows": len(rows),
    }


def _cascade(task: Task, networks: Networks, batch: Batch, target: Tensor) -> list[float | None]:
    """The correlation after each depth of randomisation."""
    learned = heat(task, [networks], batch, target)
    rounding = FLAT * task.score(networks, batch, target).abs().clamp(min=1)
    if not bool((_range(learned) > rounding).all()):
        return [None] * DEPTHS
    recogniser = copy.deepcopy(networks["recogniser"])
    random = nn.ModuleDict({**networks, "recogniser": recogniser})
    # The order in which a network names its layers is taken for the order of the data.
    layers: list[Any] = [m for m in recogniser.modules() if hasattr(m, "reset_parameters")][::-1]
    found = []
    for depth in range(DEPTHS):
        for layer in layers[len(layers) * depth // DEPTHS : len(layers) * (depth + 1) // DEPTHS]:
            # A batch normalisation starts from mean 0 and variance 1 again. Activations shrink by
            # it (scores move by 1/1000 of what they did) but are not lost, and ranks know no
            # scale: with statistics of the batch the correlations were the same (measured).
            layer.reset_parameters()
        found.append(_agreement(learned, heat(task, [random], batch, target)))
    return found


def beside_untrained(method: str, pairs: Iterable[Sequence[np.ndarray]]) -> dict[str, Any]:
    """Whether a task's own attributions hang on what was learned: the mean over rows of the
    absolute rank correlation of a trained network's with those of one that learned nothing is at
    most `limit` where it `passes`. Rows whose attributions are constant are left out."""
    from scipy.stats import spearmanr

    alike = [
        abs(float(spearmanr(learned, other).statistic))
        for learned, other in pairs
        if learned.std() > 0 and other.std() > 0
    ]
    mean = float(np.mean(alike)) if alike else None
    return {
        "method": method,
        "correlation": [mean],
        "limit": LIMIT,
        "passes": mean is not None and mean <= LIMIT,
        "rows": len(alike),
    }


def _agreement(a: Tensor, b: Tensor) -> float | None:
    """The mean over the rows of the absolute rank correlation (Spearman) of two maps."""
    from scipy.stats import spearmanr

    if not bool((torch.minimum(_range(a), _range(b)) > 0).all()):  # constant, or not a number
        return None
    pairs = zip(a.flatten(1).cpu().numpy(), b.flatten(1).cpu().numpy(), strict=True)
    return round(float(np.mean([abs(spearmanr(x, y).statistic) for x, y in pairs])), 4)


def _range(maps: Tensor) -> Tensor:
    """(B,), from the lowest to the highest place of each map."""
    return maps.amax((1, 2)) - maps.amin((1, 2))


def overlay(image: Tensor, heat: Tensor) -> bytes:
    """A PNG of one image, (C, H, W) in [-1, 1], under its map (H, W), 224 pixels a side or more.

    Orange speaks for the answer, blue against it; the map's own largest value is the most opaque.
    The image is grey, so that every colour is the map's.
    """
    height, width = heat.shape
    scale = max(1, math.ceil(SHOWN / min(height, width)))
    size = (width * scale, height * scale)
    grey = image.detach().float().cpu().mean(0).clamp(-1, 1).add(1).mul(127.5).round()
    levels = Image.fromarray(grey.to(torch.uint8).numpy()).resize(size, Image.Resampling.BICUBIC)
    heat = heat.detach().float().cpu()
    share = (heat / heat.abs().max().clamp(min=1e-30)).numpy()  # -1 to 1
    share = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BILINEAR))[:, :, None]
    opacity = OPAQUE * np.clip((np.abs(share) - FAINT) / (1 - FAINT), 0, 1)
    colour = np.where(share > 0, FOR, AGAINST)
    mixed = (1 - opacity) * np.asarray(levels)[:, :, None] + opacity * colour
    file = io.BytesIO()
    Image.fromarray(np.rint(mixed).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
