"""Where protein structures come from: PDB and mmCIF files, and the pieces of work in them.

A source is a file, a .zip of files, or a folder of both at any depth: `.pdb`, `.ent`, `.cif` or
`.mmcif`, each perhaps compressed (.gz). Whatever else lies beside them is left alone.
"""

from __future__ import annotations

import io
import lzma
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aigc_ray import storage
from aigc_ray.errors import UserError
from aigc_ray.task import Source
from aigc_ray.tasks.proteins import homology, structures
from aigc_ray.tasks.proteins.structures import WINDOW, Chain

STRIDE = 8  # residues between the starts of windows
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}  # of the windows
MEMBERS = 10_000  # of a zip file; its directory is read anew for each

_FAULTS = (  # what zipfile raises for files that are damaged, encrypted or packed in unknown ways
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, KeyError,
    ValueError, RuntimeError,
)  # fmt: skip

# Of 1abc.cif, pdb1abc.ent and 1abc_A.pdb; and of the two partners of a complex in docking
# benchmarks, NAME_r_b.pdb and NAME_l_b.pdb.
_ENTRY = re.compile(r"(?:pdb_0000|pdb)?([0-9][0-9a-z]{3})(?![0-9a-z])|(.+?)_[rl]_")


def survey(uri: str, stride: int = STRIDE) -> list[Source]:
    """The files of a source, a piece of work each, with the family that must stay in one split.

    All are read once, since relatives are told by their sequences; one that says it is a
    theoretical model is marked as `synthetic`. A file that cannot be read is a piece too: reading
    it again says why.

    Raises:
        UserError: there is no such source, or no structure in it.
    """
    pieces = _pieces(uri)
    sequences: list[str] = []
    entries: list[str] = []
    owners: list[int] = []
    rows = [0] * len(pieces)
    for number, piece in enumerate(pieces):
        try:
            content = _content(piece)
            if structures.theoretical(content):
                piece["synthetic"] = True
            chains = _different(content, piece["name"])
        except UserError:
            chains, rows[number] = [], 1  # it will be set aside
        texts = [chain.sequence for chain in chains] or [""]  # its entry has a family all the same
        rows[number] += sum(1 for chain in chains for _ in windows(chain, stride))
        sequences += texts
        entries += [entry(piece["name"])] * len(texts)
        owners += [number] * len(texts)
    group = dict(zip(owners, homology.clusters(sequences, entries), strict=True))
    split = _splits([group[number] for number in range(len(pieces))], rows)
    return [
        piece | {"group": f"family {family}", "split": split[family], "rows": rows[number]}
        for number, piece in enumerate(pieces)
        for family in [group[number]]
    ]


def _splits(family: list[int], rows: list[int]) -> dict[int, str]:
    """Which split each family goes to, the largest first, each to that which lacks most of its
    share of windows: drawn by lot, few families make splits of any size and kind."""
    size: Counter[int] = Counter()
    for one, count in zip(family, rows, strict=True):
        size[one] += count
    lacks = {split: share * size.total() for split, share in SHARES.items()}
    found = {}
    for one, count in size.most_common():
        chosen = max(lacks, key=lambda split: lacks[split] / SHARES[split])
        lacks[chosen] -= count
        found[one] = chosen
    return found


def chains_of(piece: Source) -> list[Chain]:
    """The chains of a piece; of equal ones the first, since the copies of a symmetric complex have
    nearly the same shape.

    Raises:
        UserError: what is wrong with the file.
    """
    return _different(_content(piece), piece["name"])


def _different(content: bytes, name: str) -> list[Chain]:
    chains = structures.parse(content, name)
    return list({chain.sequence: chain for chain in reversed(chains)}.values())[::-1]


def windows(chain: Chain, stride: int = STRIDE) -> Iterator[slice]:
    """Stretches of `WINDOW` residues without a break, the last of each segment up to its end."""
    for segment in chain.segments():
        last = segment.stop - WINDOW
        if last >= segment.start:
            for start in (*range(segment.start, last, stride), last):
                yield slice(start, start + WINDOW)


def entry(name: str) -> str:
    """Which entry of a data bank a file's name says it is of; else the name without its ending."""
    stem = name.lower()
    for ending in sorted(structures.ENDINGS, key=len, reverse=True):
        stem = stem.removesuffix(ending)
    found = _ENTRY.match(storage.name(stem))
    return (found[1] or found[2]) if found else stem


# --- bytes ------------------------------------------------------------------------------------


def _pieces(uri: str) -> list[Source]:
    if uri.lower().endswith((*structures.ENDINGS, ".zip")):
        found = _pieces_of(uri, storage.name(uri))
    else:
        names = storage.files(uri)
        found = [piece for name in names for piece in _pieces_of(storage.join(uri, name), name)]
    if not found:
        known = ", ".join((*structures.ENDINGS, ".zip"))
        raise UserError(f"{uri} holds no structures: files whose names end in {known}")
    return found


def _pieces_of(path: str, name: str) -> list[Source]:
    """The pieces of a file: itself, the structures in a zip file, or none."""
    if name.lower().endswith(".zip"):
        with _opened(path) as archive:
            members = sorted({one.filename for one in archive.infolist()})
        if len(members) > MEMBERS:
            raise UserError(
                f"{path} has {len(members)} files, more than the {MEMBERS} allowed: unpack it into "
                "a folder"
            )
        # Names that begin with a dot are what some packers add.
        return [
            {"path": path, "name": member, "member": member}
            for member in members
            if _is_structure(member) and "/." not in f"/{member}"
        ]
    if not _is_structure(name):
        return []
    if not storage.exists(path):
        raise UserError(f"{path} does not exist")
    return [{"path": path, "name": name, "member": None}]


def _is_structure(name: str) -> bool:
    return name.lower().endswith(structures.ENDINGS)


def _content(piece: Source) -> bytes:
    """A file's bytes, perhaps compressed; of a zip's member never more than are allowed."""
    if piece["member"] is None:
        return storage.read_bytes(piece["path"], structures.BYTES)
    # What a zip file says of a member's size may be wrong.
    with _opened(piece["path"]) as archive, archive.open(piece["member"]) as file:
        return file.read(structures.BYTES + 1)


@contextmanager
def _opened(uri: str) -> Iterator[zipfile.ZipFile]:
    """The zip file, read from where it lies; its faults are told in one sentence."""
    if not storage.exists(uri):
        raise UserError(f"{uri} does not exist")
    system, path = storage.filesystem(uri)
    try:
        # Buffered, since zipfile reads a few hundred bytes at a time: each is a request in S3.
        with (
            system.open_input_file(path) as raw,
            io.BufferedReader(raw, 1 << 20) as file,
            zipfile.ZipFile(file) as archive,
        ):
            yield archive
    except UserError:
        raise
    except _FAULTS as error:
        raise UserError(f"{uri} cannot be read as a zip file: {error}") from None
