"""Chest-like pictures that are computed, with and without a lesion: for trials without any data.

Every picture has its own habitus: size and place of the lungs and the heart, ribs, vessels,
exposure and noise. A lesion is a soft bright spot inside a lung; vessels seen end-on and calcified
spots outside the lungs look alike, so brightness alone does not tell. The pictures resemble no
patient and serve to show and to test, never to train what is used on patients.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from aigc_ray.errors import UserError

CLASSES = ("without lesion", "with lesion")
CHUNK = 64  # pictures that are computed at once
Array = np.ndarray


def write(
    path: Path,
    *,
    train: int = 2000,
    val: int = 300,
    test: int = 400,
    size: int = 28,
    seed: int = 0,
) -> None:
    """An .npz as MedMNIST's, half of the pictures with a lesion; `synthetic` says what it is."""
    if not 28 <= size <= 256:
        raise UserError(f"size is 28 to 256 pixels; got {size}")
    arrays: dict[str, Array] = {"synthetic": np.ones(1, np.uint8), "classes": np.array(CLASSES)}
    for number, (split, count) in enumerate((("train", train), ("val", val), ("test", test))):
        random = np.random.default_rng((seed, number))
        label = random.permutation(np.arange(count) % 2).astype(np.uint8)
        parts = [
            draw(label[start : start + CHUNK], size, random) for start in range(0, count, CHUNK)
        ]
        empty = np.zeros((0, size, size), np.uint8)
        arrays[f"{split}_images"] = np.concatenate([empty, *parts])
        arrays[f"{split}_labels"] = label[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def draw(label: Array, size: int, random: np.random.Generator) -> Array:
    """(N, size, size) uint8 for labels (N,) of 0 and 1."""
    count = len(label)

    def vary(middle: float, spread: float) -> Array:  # (N, 1, 1), one number a picture
        return (middle + spread * random.uniform(-1, 1, count))[:, None, None]

    # Twice as fine as asked for, then averaged: edges are soft at every size.
    axis = (np.arange(2 * size) + 0.5) / size - 1.0
    y, x = axis[None, :, None], axis[None, None, :]
    x = x - vary(0, 0.06) + vary(0, 0.06) * y  # off the middle, tilted
    y = y - vary(0, 0.06)

    body = _soft(1 - (x / vary(0.95, 0.1)) ** 4 - ((y - 0.35) / 1.25) ** 4, 0.15)
    picture = vary(0.62, 0.06) * body
    wide, high = vary(0.33, 0.04), vary(0.62, 0.07)
    apart, top = vary(0.43, 0.03), vary(-0.05, 0.05)
    lungs = np.zeros_like(picture)
    for side in (-1, 1):
        across, along = (x - side * apart) / wide, (y - top) / high
        lungs = np.maximum(lungs, _soft(1 - np.abs(across) ** 2.4 - np.abs(along) ** 2.6, 0.25))
    heart = _soft(1 - ((x - 0.12) / vary(0.33, 0.07)) ** 2 - ((y - 0.33) / 0.34) ** 2, 0.3)
    lungs = lungs * (1 - 0.95 * heart)
    picture = picture * (1 - vary(0.62, 0.1) * lungs)
    picture = picture + 0.16 * np.exp(-((x / 0.09) ** 2)) * body  # the spine
    bend = y * vary(5.2, 0.5) - 1.4 * x**2 + vary(0, 0.5)
    ribs = np.clip(np.cos(2 * np.pi * bend / 1.6) - 0.35, 0, None)
    picture = picture + vary(0.10, 0.04) * ribs * body * (np.abs(x) < 0.9)
    picture = picture + _vessels(x, y, lungs, random)
    picture = picture + _spots(x, y, label, apart, wide, high, top, random)
    picture = picture * vary(1.0, 0.12) + vary(0.02, 0.04)
    shade = vary(0, 0.08) * x + vary(0, 0.08) * y
    picture = (picture + shade).reshape(count, size, 2, size, 2).mean((2, 4))
    picture = picture + random.normal(0, 0.025, picture.shape) * vary(1.0, 0.4)
    return np.clip(np.rint(255 * picture), 0, 255).astype(np.uint8)


def _soft(inside: Array, width: float) -> Array:
    """1 where `inside` is positive, 0 where it is negative, and a slope between."""
    return np.clip(inside / width + 0.5, 0, 1)


def _vessels(x: Array, y: Array, lungs: Array, random: np.random.Generator) -> Array:
    """Bright lines that leave the roots of the lungs, and texture that is finer away from them."""
    total = np.zeros_like(lungs)
    for side in (-1, 1):
        for _ in range(4):
            angle = random.uniform(-1.2, 1.2, (len(lungs), 1, 1))
            forward = side * (x - side * 0.15) * np.cos(angle) + y * np.sin(angle)
            beside = -side * (x - side * 0.15) * np.sin(angle) + y * np.cos(angle)
            bend = random.uniform(-0.35, 0.35, (len(lungs), 1, 1))
            beside = beside - bend * forward**2
            width = 0.035 * np.clip(1 - forward, 0.2, 1)
            total += (
                np.exp(-((beside / width) ** 2)) * np.clip(1 - 1.2 * forward, 0, 1) * (forward > 0)
            )
    return 0.10 * np.clip(total, 0, 2) * lungs


def _spots(
    x: Array,
    y: Array,
    label: Array,
    apart: Array,
    wide: Array,
    high: Array,
    top: Array,
    random: np.random.Generator,
) -> Array:
    """The lesions, and in every picture spots that are none: small in a lung, any size outside."""
    shape = (len(label), 1, 1)
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape))

    def spot(across: Array, along: Array, radius: Array, stretch: Array, strength: Array) -> Array:
        distance = ((x - across) / (radius * stretch)) ** 2 + ((y - along) * stretch / radius) ** 2
        return strength * np.exp(-(distance**1.5))

    side = random.choice([-1.0, 1.0], shape)
    turn, reach = random.uniform(0, 2 * np.pi, shape), np.sqrt(random.uniform(0, 1, shape))
    across = side * (apart + 0.03) + 0.55 * wide * reach * np.cos(turn)
    along = top + 0.62 * high * reach * np.sin(turn)
    radius, strength = random.uniform(0.10, 0.17, shape), random.uniform(0.10, 0.26, shape)
    stretch = random.uniform(0.8, 1.25, shape)
    total += label[:, None, None] * spot(across, along, radius, stretch, strength)
    one = np.ones(shape)
    for _ in range(2):  # vessels seen end-on
        side = random.choice([-1.0, 1.0], shape)
        across = side * apart + wide * random.uniform(-0.7, 0.7, shape)
        along = top + high * random.uniform(-0.7, 0.7, shape)
        radius = random.uniform(0.035, 0.06, shape)
        total += spot(across, along, radius, one, random.uniform(0.05, 0.3, shape))
    for _ in range(2):  # below the diaphragm and in the shoulders
        low = random.uniform(0, 1, shape) < 0.5
        across = np.where(low, random.uniform(-0.7, 0.7, shape), side * 0.85)
        along = np.where(low, random.uniform(0.78, 0.95, shape), random.uniform(-0.9, 0.9, shape))
        radius, strength = random.uniform(0.08, 0.18, shape), random.uniform(0.05, 0.28, shape)
        total += spot(across, along, radius, one, strength)
    return total


def main() -> None:
    """`python -m aigc_ray.tasks.diagnosis.phantoms PATH`."""
    parser = argparse.ArgumentParser(description="Write chest-like phantoms as an .npz.")
    parser.add_argument("path", type=Path)
    for name, default in (("train", 2000), ("val", 300), ("test", 400), ("size", 28), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    write(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
