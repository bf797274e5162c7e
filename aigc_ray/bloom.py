"""A set of texts in memory that does not grow: who is in it is found, a few strangers are too."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from aigc_ray.splitter import hash64

HASHES = 7  # best for ten bits a member, of which one stranger in a hundred is taken for a member


class Bloom:
    """Bloom's filter (1970), with two hashes for all (Kirsch and Mitzenmacher 2006).

    Args:
        bits: (bytes,) uint8, of which the number is a power of two; changed in place.
    """

    def __init__(self, bits: np.ndarray) -> None:
        self.bits = bits
        self.mask = np.uint64(8 * len(bits) - 1)

    def add(self, texts: Iterable[str]) -> None:
        place = self._places(texts).ravel()
        np.bitwise_or.at(self.bits, place >> 3, _bit(place))

    def holds(self, texts: Iterable[str]) -> np.ndarray:
        """(N,) bool."""
        place = self._places(texts)
        found: np.ndarray = (self.bits[place >> 3] & _bit(place)).all(1)
        return found

    def _places(self, texts: Iterable[str]) -> np.ndarray:
        """(N, HASHES) numbers of bits."""
        key = np.fromiter(map(hash64, texts), np.uint64)[:, None]
        stride = (key >> np.uint64(32)) | np.uint64(1)
        with np.errstate(over="ignore"):
            place: np.ndarray = key + stride * np.arange(HASHES, dtype=np.uint64)
        return (place & self.mask).astype(np.int64)


def _bit(place: np.ndarray) -> np.ndarray:
    return np.left_shift(1, place & 7).astype(np.uint8)
