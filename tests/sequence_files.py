"""Small DNA sequences with a motif planted in one of two classes, and the files they come in."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterable
from pathlib import Path

CLASSES = ("other", "promoter")
MOTIF, PLACE = "TATAAA", 20  # planted in promoters, from 0 on
# How often each letter follows another; C before G is rare, as in vertebrates.
AFTER = {"A": (35, 15, 25, 25), "C": (30, 30, 8, 32), "G": (28, 24, 28, 20), "T": (18, 22, 28, 32)}
WRAPPED = 17  # letters of a line of FASTA

Pair = tuple[str, str]  # a sequence and its class


def background(length: int, chance: random.Random) -> str:
    """A walk in which each letter hangs on the one before."""
    text = chance.choice("ACGT")
    while len(text) < length:
        text += chance.choices("ACGT", AFTER[text[-1]])[0]
    return text


def sequences(
    count: int, length: int = 40, seed: int = 0, *, kept: float = 1.0, spread: int = 1
) -> list[Pair]:
    """So many of both classes by turns, the same for the same seed.

    Args:
        kept: the chance that a letter of a planted motif is not another.
        spread: by how many letters a motif may stand before or behind its place.
    """
    chance, found = random.Random(seed), []
    for number in range(count):
        text, name = background(length, chance), CLASSES[number % 2]
        if name == "promoter":
            motif = "".join(
                letter if chance.random() < kept else chance.choice("ACGT") for letter in MOTIF
            )
            place = PLACE + chance.randint(-spread, spread)
            text = text[:place] + motif + text[place + len(motif) :]
        found.append((text, name))
    return found


def write(
    path: Path,
    count: int,
    length: int = 40,
    seed: int = 0,
    *,
    splits: bool = False,
    kept: float = 1.0,
    spread: int = 1,
) -> None:
    """A table, or FASTA with the class in each header, as the name's ending says.

    Args:
        splits: whether a column says of each row where it belongs.
    """
    pairs = sequences(count, length, seed, kept=kept, spread=spread)
    if any(path.name.endswith(ending) for ending in (".fa", ".fa.gz", ".fasta", ".fna")):
        put(path, fasta(pairs, told=True))
        return
    columns = {"sequence": [text for text, _ in pairs], "label": [name for _, name in pairs]}
    if splits:
        columns["split"] = [("train", "val", "test")[number // 2 % 3] for number in range(count)]
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)
        return
    lines = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
    put(path, "\n".join(lines) + "\n")


def write_fasta(
    folder: Path, count: int, length: int = 40, seed: int = 0, ending: str = ".fa", mark: str = ""
) -> None:
    """A file a class, called after it and `mark`; some sequences hold an N."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [
        (text[:5] + "N" + text[6:] if number % 10 < 2 else text, name)
        for number, (text, name) in enumerate(sequences(count, length, seed))
    ]
    for name in CLASSES:
        put(folder / f"{name}{mark}{ending}", fasta(pair for pair in pairs if pair[1] == name))


def fasta(pairs: Iterable[Pair], *, told: bool = False) -> str:
    """In lower case and lines of a few letters, as genome browsers give it."""
    lines = []
    for number, (text, name) in enumerate(pairs, 1):
        lines.append(f">s{number} made{f' label={name}' if told else ''}")
        lines += [text[at : at + WRAPPED].lower() for at in range(0, len(text), WRAPPED)]
    return "\n".join(lines) + "\n"


def put(path: Path, text: str) -> None:
    """A text file, compressed if it is called .gz."""
    packed = text.encode()
    path.write_bytes(gzip.compress(packed) if path.name.endswith(".gz") else packed)


def other_strand(text: str) -> str:
    return text.translate(str.maketrans("ACGTN", "TGCAN"))[::-1]
