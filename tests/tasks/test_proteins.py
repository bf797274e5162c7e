"""Windows come in as they are, backbones are generated as asked for, and both are recognised."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import json
import math
import re

import gemmi
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aigc_ray import config, generate, noise, registry, rows
from aigc_ray.adversary import Adversary
from aigc_ray.errors import UserError
from aigc_ray.ingest import ingest
from aigc_ray.model import Model, write
from aigc_ray.task import Batch, Shortfall, Stage, stack
from aigc_ray.tasks.proteins import (
    data,
    decoys,
    design,
    geometry,
    metrics,
    phantoms,
    pictures,
    structures,
)
from aigc_ray.tasks.proteins.assignment import HELIX, assign, fold_class
from aigc_ray.tasks.proteins.data import CLASSES, LABEL, STRUCTURE, TRACE
from aigc_ray.tasks.proteins.networks import (
    NOISE,
    Critic,
    Generator,
    Recogniser,
    Unedited,
    untangled,
)
from aigc_ray.tasks.proteins.task import Memory, Proteins
from aigc_ray.tasks.proteins.walks import TURNS, Walks, angles, apart, built
from tests import protein_files
from tests.protein_files import EXTENDED, HELICAL

SETTINGS = {
    "width": 16,
    "recogniser_width": 32,
    "recogniser_dropout": 0,
    "recogniser_rate": 7e-3,
    "references": 50,
    "precision": "fp32",
}
MIRROR = torch.tensor([1.0, 1.0, -1.0])
PNG = b"\x89PNG"
SCHEMA = data.schema()
FIELDS = (TRACE, STRUCTURE, LABEL)


def random(count: int, stream: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return noise.uniform(noise.keys(seed, torch.arange(count)), stream, shape)


def normal(count: int, stream: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return noise.normal(noise.keys(seed, torch.arange(count)), stream, shape)


def traces(count: int, seed: int = 0) -> torch.Tensor:
    """(4 * count, 64, 3): so many chains of each kind."""
    kinds = [
        protein_files.windows(kind, count, 10 * seed + number)
        for number, kind in enumerate(protein_files.KINDS)
    ]
    return torch.from_numpy(np.concatenate(kinds)).float()


def columns(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """So many windows of each kind, as an ingestion would describe them."""
    records = [data.described(ca.numpy(), SCHEMA) for ca in traces(count, seed)]
    return stack([{name: record[name] for name in FIELDS} for record in records])


def coded(ca: torch.Tensor) -> torch.Tensor:
    """(B, 64) what the rule says of traces."""
    return torch.from_numpy(np.stack([assign(one.numpy()) for one in ca])).long()


@pytest.fixture(scope="module")
def trained():
    """A model after a moment of all players and some more of the recogniser, and validation rows.

    The generator is hardly moved from its walks, whose bonds, helices and hand are those of real
    chains.
    """
    task = dataclasses.replace(config.override(Proteins(), SETTINGS), schema=SCHEMA)
    (stage,) = task.stages()
    recogniser = [player for player in stage.players if player.network == "recogniser"]
    adversary = Adversary(
        task,
        seed=0,
        stages=(
            stage._replace(steps=6),
            Stage("recogniser", 130, tuple(recogniser), refresh=0),
        ),
    )
    seen, held_back = columns(100), columns(20, seed=1)
    every = torch.arange(len(seen[LABEL]))
    order = np.random.default_rng(0).permutation(len(every))
    seen = {name: column[order] for name, column in seen.items()}
    adversary.prepare(iter([task.encode(seen, noise.keys(0, every))]))
    feed = rows.Memory(seen, batch_size=16, seed=0).batches(0, rows.Share())
    while not adversary.finished:
        number, taken = next(feed)
        adversary.step(task.encode(taken, noise.keys(0, torch.from_numpy(number))))
    validation = task.encode(held_back, noise.keys(1, torch.arange(len(held_back[LABEL]))))
    return Model(task, [adversary.average], {}), validation


def instead(batch: Batch, trace: torch.Tensor) -> Batch:
    return batch._replace(value=batch.value | {TRACE: trace})


# --- ingestion --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """A folder of files, some of them related, broken or there twice: the rows and the rejects."""
    folder = tmp_path_factory.mktemp("proteins")
    source = protein_files.write(folder / "source")
    (folder / "source/1p00.cif").write_bytes(protein_files.cif(protein_files.one(0)))
    related = protein_files.letters(90, 5)  # that of 1p05, with every third letter another
    related = "".join("A" if number % 3 == 0 else one for number, one in enumerate(related))
    (ca,) = protein_files.windows("alpha", 1, 77, 90)
    (folder / "source/1rel.pdb").write_bytes(protein_files.text(protein_files.chain(ca, related)))
    (folder / "source/1bad.pdb").write_bytes(b"no structure")
    (folder / "source/1cut.pdb").write_bytes(protein_files.text(protein_files.blocks(50)))
    manifest = ingest(Proteins(), source, str(folder / "data"), parallel=0)
    names = [*FIELDS, "patient", "source"]
    found = {
        split: rows.load(str(folder / "data"), manifest, split, names)
        for split in ("train", "val", "test")
    }
    rejects = pq.read_table(folder / "data/rejects.parquet").to_pylist()
    return manifest, found, {one["source"]: one["reason"] for one in rejects}


def test_families_stay_in_one_split(ingested):
    _, found, _ = ingested
    families = {split: set(table["patient"]) for split, table in found.items()}
    for one, other in itertools.combinations(families.values(), 2):
        assert not one & other
    assert len(set.union(*families.values())) == 16  # a relative and a second form are no more
    whose = {
        str(source).split(".")[0]: family
        for table in found.values()
        for source, family in zip(table["source"], table["patient"], strict=True)
    }
    assert whose["1rel"] == whose["1p05"] != whose["1p04"]


def test_splits_have_their_shares_and_several_classes_each(ingested):
    _, found, _ = ingested
    counts = {split: len(table[LABEL]) for split, table in found.items()}
    for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        assert counts[split] / sum(counts.values()) == pytest.approx(share, abs=0.06)
        assert len(set(found[split][LABEL].tolist())) >= 2


def test_structure_and_class_are_those_of_the_stored_trace(ingested):
    _, found, _ = ingested
    for table in found.values():
        for ca, states, label in zip(*(table[name] for name in FIELDS), strict=True):
            ca = ca.reshape(64, 3)
            assert np.array_equal(states, assign(ca) + 1)
            assert SCHEMA[LABEL].values[label] == fold_class(assign(ca))
            assert np.abs(ca.mean(0)).max() < 1e-4
            step = np.linalg.norm(np.diff(ca, axis=0), axis=1)
            assert np.allclose(step, 3.8, atol=0.01)


def test_windows_begin_every_eight_residues_and_end_with_the_chain(ingested):
    _, found, _ = ingested
    every = [str(name) for table in found.values() for name in table["source"]]
    starts = [int(name.split(":")[2]) for name in every if name.startswith("1p15.pdb:A:")]
    assert sorted(starts) == [1, 9, 17, 25, 33, 41, 47]  # of 110 residues


def test_a_cif_and_a_pdb_of_one_entry_come_in_once(ingested):
    manifest, found, _ = ingested
    every = [str(name) for table in found.values() for name in table["source"]]
    assert len(every) == len(set(every))
    assert len([name for name in every if name.startswith("1p00.")]) == 3  # 80 residues
    assert manifest["splits"]["train"]["rows"] == len(found["train"][LABEL])


def test_what_is_no_protein_is_set_aside_with_its_reason(ingested):
    _, _, rejects = ingested
    assert set(rejects) == {"1bad.pdb", "1cut.pdb"}
    assert "neither PDB nor mmCIF" in rejects["1bad.pdb"]
    assert "50 residues, and 64 are needed" in rejects["1cut.pdb"]


def test_phantoms_are_seeded_all_read_and_flagged(tmp_path):
    for name, chains, seed in (("a", 24, 0), ("b", 24, 0), ("c", 24, 1)):
        phantoms.write(tmp_path / name, chains=chains, seed=seed)
    a, b, c = ([one.read_text() for one in sorted((tmp_path / name).iterdir())] for name in "abc")
    assert a == b and not set(a) & set(c)
    assert all(len(line) == 80 for one in a for line in one.splitlines())
    manifest = ingest(Proteins(), str(tmp_path / "a"), str(tmp_path / "data"), parallel=0)
    assert manifest["synthetic"] and manifest["rejects"]["count"] == 0
    names, kinds = [*FIELDS, "patient", "source"], [*phantoms.KINDS]
    families, right = set(), []
    for split in ("train", "val", "test"):
        table = rows.load(str(tmp_path / "data"), manifest, split, names)
        families |= set(table["patient"])
        for source, label in zip(table["source"], table[LABEL], strict=True):
            number = int(str(source).removeprefix("phantom-").split(".")[0])
            right.append(CLASSES[label] == kinds[number % len(kinds)])
    assert len(families) == 24 and len(right) == 72
    assert np.mean(right) > 0.8


# --- requests ---------------------------------------------------------------------------------


def two_chains() -> bytes:
    """Chain A of 70 helical residues, and B of 200 extended ones."""
    other = protein_files.blocks(200, "B", EXTENDED, 60)
    return protein_files.text(protein_files.blocks(), other)


def centred(ca: np.ndarray) -> np.ndarray:
    return ca - ca.mean(0)


def test_a_file_and_its_text_and_its_coordinates_are_one_window():
    content = protein_files.text(protein_files.blocks(64))
    coordinates = protein_files.ideal(HELICAL, 64).round(3)
    file = data.parse({"file": content, "filename": "one.pdb"})
    text = data.parse({"pdb": content.decode()})
    points = data.parse({"coordinates": coordinates.tolist()})
    mmcif = data.parse({"file": protein_files.cif(content)})
    for found in (file, text, points, mmcif):
        assert found[TRACE].dtype == np.float32
        assert np.allclose(found[TRACE], centred(coordinates), atol=2e-3)
        assert found.keys().isdisjoint({STRUCTURE, LABEL})  # they are what is asked for
    assert file["chain"] == "A" and file["residues"] == [str(number) for number in range(1, 65)]
    assert len(file["sequence"]) == 64 and file["variants"] == {} and file["warnings"] == []


@pytest.mark.parametrize(
    ("wanted", "name", "kind"),
    [(None, "A", HELICAL), ("", "A", HELICAL), ("A", "A", HELICAL), ("B", "B", EXTENDED)],
)
def test_a_chain_is_asked_for_by_its_name(wanted, name, kind):
    found = data.parse({"file": two_chains(), "chain": wanted})
    assert found["chain"] == name
    assert np.allclose(found[TRACE], centred(protein_files.ideal(kind, 64)), atol=2e-3)


def test_further_windows_are_variants():
    found = data.parse({"file": two_chains(), "chain": "B"})
    assert found["residues"][0] == "1" and found["residues"][-1] == "64"
    assert list(found["variants"]) == ["B:65-128", "B:129-192", "B:137-200"]
    whole = protein_files.ideal(EXTENDED, 200)
    assert np.allclose(found["variants"]["B:65-128"][TRACE], centred(whole[64:128]), atol=2e-3)


def test_what_is_left_out_of_a_long_chain_is_told(monkeypatch):
    monkeypatch.setattr(data, "MOST_WINDOWS", 1)
    found = data.parse({"file": two_chains(), "chain": "B"})
    assert list(found["variants"]) == ["B:65-128"]
    assert found["warnings"] == ["2 further windows are not told of"]


def spoiled(place: int, value: float) -> list[list[float]]:
    points = protein_files.ideal(HELICAL, 64)
    points[place:] += value
    return points.tolist()


def unordered() -> bytes:
    made = protein_files.blocks()
    return protein_files.text(made[:20], made[40:], made[20:40])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({}, 'file is a PDB or mmCIF file; send it as an upload, its text as "pdb", or 64 points'),
        ({"file": 7}, "file is a PDB or mmCIF file"),
        ({"file": two_chains(), "filename": "x.pdb", "chain": "C"}, "x.pdb: chain is one of A, B"),
        ({"pdb": two_chains().decode(), "chain": 1}, "pdb: chain is one of A, B; got 1"),
        ({"coordinates": protein_files.ideal(HELICAL, 63).tolist()}, "coordinates are 64 points"),
        ({"coordinates": None}, "coordinates are 64 points"),
        ({"coordinates": "here"}, "coordinates are 64 points"),
        ({"coordinates": [[1, 2], [3]]}, "coordinates are 64 points"),
        ({"coordinates": spoiled(9, math.nan)}, "coordinates are 64 points"),
        ({"coordinates": spoiled(9, math.inf)}, "coordinates are 64 points"),
        ({"coordinates": spoiled(9, 30.0)}, "points 9 and 10 are .* angstrom apart"),
        ({"coordinates": [[0, 0, 0]] * 64}, "points 1 and 2 are 0.0 angstrom apart"),
        ({"file": b""}, "file is empty"),
        ({"pdb": "HEADER"}, "pdb is neither PDB nor mmCIF"),
        ({"file": protein_files.nucleic()}, "nucleic acids only"),
        ({"file": protein_files.text(protein_files.blocks(63))}, "63 residues, and 64 are needed"),
        ({"file": protein_files.cif(two_chains())[:-80] + b"'open\n"}, "not readable as mmCIF"),
        ({"file": unordered()}, "out of order"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(item, words):
    with pytest.raises(UserError, match=words) as error:
        data.parse(item)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "item",
    [{"coordinates": [[10**400, 0, 0]] * 64}, {"pdb": "\ud800"}],
    ids=["a number beyond floats", "half a character"],
)
def test_what_json_can_say_and_nobody_means_is_refused_too(item):
    with pytest.raises(UserError):
        data.parse(json.loads(json.dumps(item)))


def test_rows_without_a_trace_are_a_straight_chain_that_is_not_known():
    batch = data.encode({}, noise.keys(0, torch.arange(2)))
    step = batch.value[TRACE].diff(dim=1).norm(dim=2)
    torch.testing.assert_close(step, torch.full_like(step, 3.8))
    assert not any(known.any() for known in batch.known.values())


def test_structure_is_told_in_letters():
    assert data.letters(np.array([1, 2, 2, 3, 1])) == "CHHEC"


# --- walks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walks() -> Walks:
    """Of helices in class 0, and of strands in class 2."""
    found = Walks(len(CLASSES))
    helices, strands = (
        torch.from_numpy(protein_files.windows(kind, 40, 5)).float() for kind in ("alpha", "beta")
    )
    found.fit(torch.cat([helices, strands]), torch.tensor([0] * 40 + [2] * 40))
    return found


def said(walks: Walks, label: torch.Tensor, seed: int = 0) -> torch.Tensor:
    count = len(label)
    return built(
        *walks.say(label, random(count, "w", (TURNS,), seed), normal(count, "t", (TURNS, 2), seed))
    )


def test_walks_of_helices_are_right_handed_helices_and_those_of_strands_hardly_any(walks):
    helices = said(walks, torch.zeros(24, dtype=torch.int64))
    found = metrics.right_handed(helices)
    assert found.right == 1 and found.helices > 24
    real = protein_files.windows("alpha", 24, 6)
    share, expected = (
        np.mean([assign(ca) == HELIX for ca in part]) for part in (helices.numpy(), real)
    )
    assert share == pytest.approx(expected, abs=0.1)
    strands = said(walks, torch.full((24,), 2))
    assert (coded(strands) == HELIX).float().mean() < 0.05
    assert np.mean([fold_class(assign(ca.numpy())) == "beta" for ca in strands]) > 0.8


def test_a_class_that_was_never_seen_walks_like_all(walks):
    ca = said(walks, torch.ones(24, dtype=torch.int64))
    assert torch.isfinite(ca).all() and metrics.bond_ok(ca) == 1


def test_turns_that_no_real_chain_has_are_strange(walks):
    real = torch.from_numpy(protein_files.windows("alpha", 24, 6))
    random_turns = built(1.2 + random(24, "bend", (TURNS,)), 6.28 * random(24, "turn", (TURNS,)))
    assert walks.strange(real).mean() < 0.3
    assert walks.strange(random_turns).min() > 3 * walks.strange(real).max()


def test_built_chains_have_right_bonds_and_give_back_their_angles():
    angle = 1.4 + random(5, "angle", (TURNS,))
    dihedral = (2 * random(5, "dihedral", (TURNS,)) - 1) * 3.1
    ca = built(angle, dihedral)
    assert ca.shape == (5, 64, 3)
    step = ca.diff(dim=1).norm(dim=2)
    torch.testing.assert_close(step, torch.full_like(step, 3.8), atol=1e-3, rtol=0)
    for found, expected in zip(angles(ca), (angle, dihedral), strict=True):
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_residues_that_overlap_are_moved_apart_and_others_stay_where_they_are(walks):
    angle, dihedral = walks.say(
        torch.full((24,), 2), random(24, "w", (TURNS,)), normal(24, "t", (TURNS, 2))
    )
    dihedral[:12, 20:26], angle[:12, 20:26] = 0.0, 1.6  # half of them turn back into themselves
    before = built(angle, dihedral)
    apart_from = geometry.distances(before)[:, *torch.triu_indices(64, 64, 3)].amin(1)
    overlap, free = apart_from < 3.6, apart_from >= 3.8
    assert overlap.sum() >= 12 and free.sum() >= 4
    after = apart(angle, dihedral, torch.ones_like(angle))
    assert metrics.clash_rate(after).structures < 0.1
    assert metrics.bond_ok(after) == 1
    assert torch.equal(after[free], before[free])
    assert geometry.rmsd(after, before)[overlap].min() > 0.01
    stiff = apart(angle, dihedral, torch.zeros_like(angle))
    assert torch.equal(stiff, before)


def test_helices_stay_where_overlaps_go():
    alpha = torch.from_numpy(protein_files.windows("alpha", 12, 7)).float()
    kept = untangled(alpha)
    assert metrics.clash_rate(kept).structures == 0
    share = [np.mean([assign(ca) == HELIX for ca in part.numpy()]) for part in (alpha, kept)]
    assert share[1] > 0.9 * share[0]


def test_a_walk_hangs_on_its_own_random_numbers_alone(walks):
    label = torch.tensor([0, 2, 0, 1, 3, 2])
    numbers, normals = random(6, "w", (TURNS,)), normal(6, "t", (TURNS, 2))
    together = walks.say(label, numbers, normals)
    alone = walks.say(label[3:5], numbers[3:5], normals[3:5])
    for one, every in zip(alone, together, strict=True):
        torch.testing.assert_close(one, every[3:5])


# --- networks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some() -> torch.Tensor:
    return traces(2, seed=3)


def test_a_generator_begins_with_the_walk_itself():
    torch.manual_seed(0)
    angle, dihedral = 1.5 + random(3, "angle", (TURNS,)), random(3, "dihedral", (TURNS,))
    z, label = normal(3, "z", (NOISE,)), torch.tensor([0, 1, 2])
    generator = Generator(len(CLASSES), 16)
    walk = Unedited()(angle, dihedral, z, label)
    assert torch.equal(generator(angle, dihedral, z, label), walk)
    torch.nn.init.normal_(generator.edit.weight)
    edited = generator(angle, dihedral, z, label)
    assert not torch.allclose(edited, walk, atol=0.1)
    assert metrics.bond_ok(edited) == 1  # whatever it makes is a chain
    other = generator(angle, dihedral, z, torch.tensor([3, 3, 3]))
    assert not torch.allclose(other, edited, atol=1e-3)


def told(recogniser, image):
    """All that a recogniser says of images: logits of states, of classes and of being real."""
    along = recogniser.along_chain(image)
    state = recogniser.state(along)
    return state, recogniser.kind(state), recogniser.realness(image, along)


def test_rows_do_not_touch_each_other(some):
    torch.manual_seed(0)
    label = torch.arange(len(some)) % len(CLASSES)
    critic = Critic(len(CLASSES), 16)
    recogniser = Recogniser(len(CLASSES), 3, 16, 0.2).eval()
    for network in (lambda image: critic(image, label), lambda image: told(recogniser, image)):
        image = geometry.image(some).requires_grad_()
        for output in network(image):
            slope = torch.autograd.grad(output[2].sum(), image, retain_graph=True)[0]
            assert slope[2].any() and not slope[:2].any() and not slope[3:].any()


def test_mirror_images_look_different_to_critic_and_recogniser(some):
    torch.manual_seed(0)
    label = torch.zeros(len(some), dtype=torch.int64)
    critic = Critic(len(CLASSES), 16)
    recogniser = Recogniser(len(CLASSES), 3, 16, 0.2).eval()
    here, there = geometry.image(some), geometry.image(some * MIRROR)
    for one, other in (
        *zip(critic(here, label), critic(there, label), strict=True),
        *zip(told(recogniser, here), told(recogniser, there), strict=True),
    ):
        assert ((one - other).reshape(len(some), -1).abs().amax(1) > 1e-4).all()


def test_networks_see_a_structure_wherever_it_lies(some):
    torch.manual_seed(0)
    recogniser = Recogniser(len(CLASSES), 3, 16, 0.2).eval()
    moved = some[..., [1, 2, 0]] + 7  # an even permutation of the axes is a rotation
    for one, other in zip(
        told(recogniser, geometry.image(some)),
        told(recogniser, geometry.image(moved)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


# --- decoys -----------------------------------------------------------------------------------


def test_errors_have_the_size_that_is_said(some):
    row = noise.keys(0, torch.arange(len(some)))
    sigma = torch.linspace(0.1, 1.5, len(some))
    for kind in (decoys.shaken, decoys.bent):
        error = kind(some, row, sigma, "x") - some
        size = error.square().mean((1, 2)).sqrt()
        # Of errors that neighbours share there are a few in a chain only.
        close = 0.2 if kind is decoys.shaken else 0.6
        torch.testing.assert_close(size, sigma, atol=0, rtol=close)
        assert torch.equal(kind(some, row, 0.0, "x"), some)
    many = some[:1].repeat(500, 1, 1)
    error = decoys.bent(many, noise.keys(0, torch.arange(500)), 1.5, "x") - many
    assert float(error.std()) == pytest.approx(1.5, rel=0.03)
    along = (error[:, 1:] * error[:, :-1]).mean() / error.square().mean()
    assert float(along) > 0.9  # neighbours share it


def test_joined_windows_are_two_halves_as_they_were():
    many = traces(12, seed=4)
    other = many.roll(5, 0)
    made = decoys.joined(many, other)
    first, second = slice(0, 32), slice(32, 64)
    torch.testing.assert_close(made[:, first], many[:, first])
    torch.testing.assert_close(
        geometry.distances(made[:, second]),
        geometry.distances(other[:, second]),
        atol=1e-2,
        rtol=1e-3,
    )
    away = ((made[:, 32] - made[:, 31]).norm(dim=1) - 3.8).abs()
    assert (away < 0.5).float().mean() > 0.8


@pytest.mark.parametrize("count", [1, 2, 7])
def test_no_decoy_is_a_window(count):
    many, others = (traces(2, seed=seed)[:count] for seed in (4, 5))
    made = decoys.decoys(many, others, noise.keys(0, torch.arange(count)))
    for row in range(count):  # whatever shares its batch
        key = noise.keys(0, torch.tensor([row]))
        alone = decoys.decoys(many[row : row + 1], others[row : row + 1], key)
        torch.testing.assert_close(alone[0], made[row], atol=1e-3, rtol=1e-3)
    assert made.shape == many.shape
    assert (metrics.nearest(made, many).rmsd > 0.3).all()


# --- recognition ------------------------------------------------------------------------------


def test_structure_of_blurred_windows_is_told_better_than_by_the_rule(trained):
    model, validation = trained
    blurred = decoys.shaken(validation.value[TRACE], validation.row, 0.5, "test")
    truth = validation.value[STRUCTURE] - 1
    told = model.recognise(instead(validation, blurred))["structure"].argmax(2)
    by_rule = (coded(blurred) == truth).float().mean()
    assert (told == truth).float().mean() > by_rule + 0.2
    assert (coded(validation.value[TRACE]) == truth).all()


def test_real_windows_look_more_plausible_than_decoys(trained):
    model, validation = trained
    mixed = torch.randperm(len(validation.row), generator=torch.Generator().manual_seed(0))
    other = validation.take(mixed)
    wrong = instead(
        other, decoys.decoys(other.value[TRACE], other.value[TRACE].roll(1, 0), other.row)
    )
    real, fake = (model.recognise(batch)["plausibility"] for batch in (validation, wrong))
    assert (real[:, None] > fake).float().mean() > 0.7


def test_classes_are_told(trained):
    model, validation = trained
    seen = {name: value.numpy() for name, value in model.recognise(validation).items()}
    value = {name: tensor.numpy() for name, tensor in validation.value.items()}
    known = {name: tensor.numpy() for name, tensor in validation.known.items()}
    found = model.task.measure(seen, value, known)
    assert found["auc"] > 0.9 and found["structure_acc"] > 0.8
    alone = model.task.measure({"probability": seen["probability"]}, value, known)
    assert alone == {name: value for name, value in found.items() if name != "structure_acc"}
    unknown = known | {STRUCTURE: np.zeros_like(known[STRUCTURE])}
    assert math.isnan(model.task.measure(seen, value, unknown)["structure_acc"])


def test_an_answer_tells_each_residue_and_each_window(trained):
    model, _ = trained
    item = {"file": two_chains(), "chain": "B", "filename": "two.pdb"}
    (answer,) = model.predict([item])
    assert json.loads(json.dumps(answer)) == answer
    assert answer["chain"] == "B" and len(answer["sequence"]) == 64
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    for one in (answer, answer["B:129-192"]):
        assert set(one["secondary_structure"]) <= set("HEC")
        assert len(one["secondary_structure"]) == len(one["secondary_confidence"]) == 64
        assert all(1 / 3 <= share <= 1 for share in one["secondary_confidence"])
        assert 0 <= one["plausibility"] <= 1 and len(one["coordinates"]) == 64
    assert answer["residues"][0] == "1" and answer["B:129-192"]["residues"][0] == "129"
    points = {"coordinates": answer["coordinates"]}
    (again,) = model.predict([points])
    assert again["secondary_structure"] == answer["secondary_structure"]
    assert "chain" not in again


def test_helix_and_strand_are_told_apart(trained):
    model, _ = trained
    for kind, letter, label in ((HELICAL, "H", "alpha"), (EXTENDED, "E", "beta")):
        item = {"coordinates": protein_files.ideal(kind, 64).tolist()}
        (answer,) = model.predict([item])
        assert answer["secondary_structure"].count(letter) > 40, label


# --- sets -------------------------------------------------------------------------------------


def test_sets_that_are_alike_have_no_distance_and_others_have(trained):
    model, validation = trained
    same = model.task.compared(validation, validation)
    assert same == {"contact_js": 0, "secondary_js": 0, "radius_gap": 0, "clash_rate": 0}
    helices = torch.from_numpy(protein_files.windows("alpha", 12, 8)).float()
    other = model.task.compared(validation, instead(validation, helices))
    assert other["contact_js"] > 0.02 and other["secondary_js"] > 0.02


def test_the_walks_alone_can_be_compared_with(trained):
    model, validation = trained
    unedited = torch.nn.ModuleDict({**model.members[0], "generator": model.members[0]["unedited"]})
    few = validation.take(torch.arange(4))
    single = dataclasses.replace(model.task, candidates=1)
    walks, edited = (single.draw(one.eval(), few) for one in (unedited, model.members[0]))
    assert not torch.allclose(walks.value[TRACE], edited.value[TRACE], atol=1e-3)
    assert (geometry.rmsd(walks.value[TRACE], edited.value[TRACE]) < 10).all()
    assert metrics.bond_ok(walks.value[TRACE]) == 1


def test_of_several_candidates_the_critic_lets_one_pass(trained):
    model, validation = trained

    class Compact(torch.nn.Module):
        def forward(self, image, label):
            return -100 * image[:, 0].mean((1, 2)), None

    networks = torch.nn.ModuleDict({**model.members[0], "critic": Compact()}).eval()
    one, several = (
        dataclasses.replace(model.task, candidates=count).draw(networks, validation).value["made"]
        for count in (1, 8)
    )
    assert metrics.radius_ratio(several) < 0.8 * metrics.radius_ratio(one)


def test_the_critics_odds_count_to_the_third_power(trained, monkeypatch):
    model, validation = trained
    few = validation.take(torch.arange(6))

    class Fixed(torch.nn.Module):
        def forward(self, image, label):
            return torch.arange(len(image)) % 8 / 8, None

    networks = torch.nn.ModuleDict({**model.members[0], "critic": Fixed()}).eval()
    asked = []
    pick = noise.pick
    monkeypatch.setattr(noise, "pick", lambda *both: asked.append(both[0]) or pick(*both))
    model.task.draw(networks, few)
    torch.testing.assert_close(asked, [3 * (torch.arange(8) / 8).expand(6, 8)])


def test_drawn_windows_come_with_their_structure(trained):
    model, validation = trained
    drawn = model.draw(validation.take(torch.arange(6)))
    assert torch.equal(drawn.value[STRUCTURE], coded(drawn.value[TRACE]) + 1)
    assert drawn.value[TRACE].mean(1).abs().max() < 1e-3
    assert metrics.bond_ok(drawn.value[TRACE]) == 1


def test_elsewhere_atoms_are_placed_a_little_differently(trained):
    model, validation = trained
    moved = model.task.perturb(validation).value[TRACE] - validation.value[TRACE]
    assert float(moved.std()) == pytest.approx(0.3, rel=0.05)


def test_memory_keeps_the_first_windows_and_knows_a_usual_one(some):
    for size, count in ((5, 5), (8, 8), (50, 8)):
        memory = Memory(size)
        memory.keep(some)
        assert int(memory.kept.sum()) == count
        assert torch.equal(memory.trace[memory.kept], some[:count])
        assert any(torch.equal(memory.usual()[0], one) for one in some)


# --- design -----------------------------------------------------------------------------------


def asked(trained, **request) -> list:
    return [*trained[0].task.generate(trained[0], {"n": 3, "plausible": 0.0} | request)]


def traced(items) -> torch.Tensor:
    return torch.tensor([item["coordinates"] for item in items])


@pytest.mark.parametrize("name", [None, "alpha", "beta"])
def test_what_is_answered_is_a_chain_of_the_class_asked_for(trained, name):
    items = asked(trained, **{"class": name, "seed": 4})
    assert len(items) == 3 and not any(isinstance(item, Shortfall) for item in items)
    ca = traced(items)
    assert ca.shape == (3, 64, 3)
    assert metrics.bond_ok(ca) == 1 and metrics.clash_rate(ca).pairs == 0
    for item, one in zip(items, ca, strict=True):
        assert name in (None, item["class"])
        assert item["class"] == fold_class(assign(one.numpy()))
        # The coordinates are rounded, so a residue at one of the rule's limits may change sides.
        letters = data.letters(assign(one.numpy()) + 1)
        assert sum(a != b for a, b in zip(item["secondary_structure"], letters, strict=True)) <= 2
        assert item["checks"]["bonds"] == 1 and item["checks"]["clashes"] == 0
        assert item["checks"]["right_handed"] in (None, 1.0)
        assert 0 < item["checks"]["ramachandran_allowed"] <= 1
        assert item["seed"] == 4 and item["map"][:4] == PNG
        assert 0 <= item["probability"] <= 1


def test_what_is_answered_is_as_plausible_as_asked(trained):
    alpha = {"class": "alpha"}
    every = [item["plausibility"] for item in asked(trained, n=8, **alpha)]
    wanted = sorted(every)[4]
    items = asked(trained, plausible=wanted, **alpha)
    assert len(items) == 3 and all(item["plausibility"] >= wanted for item in items)
    again = design.recognised(trained[0], traced(items))["plausibility"]
    told = [item["plausibility"] for item in items]
    assert again.tolist() == pytest.approx(told, abs=2e-3)


def test_where_no_class_is_asked_for_there_is_one_of_each_in_turn(trained, monkeypatch):
    helix = torch.from_numpy(protein_files.ideal(HELICAL, 64)).float()
    coil = torch.from_numpy(protein_files.ideal((-90, 0), 64)).float()

    def drawn(model, label, row):  # one in eight of the class "little" comes out as asked
        made = helix.repeat(len(label), 1, 1)
        made[(label == classes.index("little")) & (row == row[-1])] = coil
        return made

    classes = list(trained[0].task.classes)
    monkeypatch.setattr(design, "drawn", drawn)
    items = asked(trained, n=8)  # the other classes cannot be made, and these go on
    assert [item["class"] for item in items] == ["alpha", "little"] * 4


def test_a_class_that_no_training_window_had_is_not_tried(trained, monkeypatch):
    model = copy.deepcopy(trained[0])
    model.members[0]["walks"].first[1:] = 0
    tried = []
    drawn = design.drawn
    monkeypatch.setattr(design, "drawn", lambda *all: tried.append(all[1]) or drawn(*all))
    assert {item["class"] for item in asked((model,), n=3)} == {model.task.classes[0]}
    assert not torch.cat(tried).any()


def test_the_same_seed_gives_the_same_and_fewer_are_the_first_of_more(trained):
    items = asked(trained, seed=3)
    assert asked(trained, seed=3) == items
    assert asked(trained, seed=3, n=2) == items[:2]
    assert not torch.equal(traced(asked(trained, seed=4)), traced(items))
    assert len({item["number"] for item in items}) == 3


def test_items_pass_through_json_but_for_their_files(trained):
    for item in asked(trained, n=2):
        plain = {key: value for key, value in item.items() if not isinstance(value, bytes)}
        assert json.loads(json.dumps(plain)) == plain
        assert set(item) - set(plain) == {"map"}


def test_the_pdb_text_is_read_back_with_the_coordinates_of_the_item(trained):
    (item,) = asked(trained, n=1, **{"class": "alpha"})
    (chain,) = structures.parse(item["pdb"].encode(), "made.pdb")
    assert np.allclose(chain.backbone[:, 1], item["coordinates"], atol=1.1e-3)
    assert np.isfinite(chain.backbone).all() and chain.starts == [0]
    assert "NOT A STRUCTURE THAT WAS MEASURED" in item["pdb"]
    helices = gemmi.read_pdb_string(item["pdb"]).helices
    runs = [run for run in re.findall("H+", item["secondary_structure"]) if len(run) > 1]
    assert len(helices) == len(runs) > 0


def test_the_nearest_training_window_is_told(trained):
    memory = trained[0].members[0]["memory"]
    ca = memory.trace[0] + 5.0
    told = design.evidence(trained[0], ca)["nearest"]["rmsd"]
    assert told == pytest.approx(0, abs=2e-3)
    (item,) = asked(trained, n=1)
    assert item["nearest"]["rmsd"] > 0.5


def counts(reason: str) -> tuple[int, dict[str, int]]:
    """How many were made, and how many of them were missed for which reason."""
    made, parts = re.fullmatch(r"of (\d+) structures that were made (.*)", reason).groups()
    found = (re.fullmatch(r"(\d+) (.*)", part).groups() for part in parts.split(", "))
    return int(made), {why: int(count) for count, why in found}


def test_a_class_that_is_never_made_ends_in_bounded_time_with_reasons(trained, monkeypatch):
    ca = torch.from_numpy(protein_files.ideal(HELICAL, 64)).float()
    calls = []

    def helices(model, label, row):
        calls.append(len(label))
        return ca.repeat(len(label), 1, 1)

    monkeypatch.setattr(design, "drawn", helices)
    (short,) = asked(trained, n=2, **{"class": "beta"})
    assert isinstance(short, Shortfall) and short.missing == 2
    made, why = counts(short.reason)
    assert made == sum(calls) == sum(why.values())
    assert made <= design.TRIES * 4 + design.ROUND
    assert why == {"came to be of another class": made}
    found = asked(trained, n=2, **{"class": "alpha"})  # and of its own class it is given
    assert len(found) == 2


def test_each_fault_is_counted_by_its_name(trained, monkeypatch):
    good = torch.from_numpy(protein_files.ideal(HELICAL, 64)).float()
    clashing, stretched = good.clone(), good.clone()
    clashing[40] = clashing[10]
    stretched[32:] += 0.3 * (good[32] - good[31])

    def drawn(model, label, row):
        return torch.stack([clashing, stretched, good, good] * (len(label) // 4))

    monkeypatch.setattr(design, "drawn", drawn)
    (short,) = asked(trained, n=1, plausible=0.999999, **{"class": "alpha"})
    made, why = counts(short.reason)
    assert why == {
        "had residues that clash": made // 4,
        "had bonds of another length than 3.8 angstrom": made // 4,
        "looked like no protein to the recogniser": made // 2,
    }


def test_a_shortfall_comes_after_what_could_be_made(trained, monkeypatch):
    monkeypatch.setattr(design, "TRIES", 2)
    good = torch.from_numpy(protein_files.ideal(HELICAL, 64)).float()
    strand = torch.from_numpy(protein_files.ideal(EXTENDED, 64)).float()

    def drawn(model, label, row):
        return torch.stack([good, *[strand] * (len(label) - 1)])

    monkeypatch.setattr(design, "drawn", drawn)
    *items, short = asked(trained, n=3, **{"class": "alpha"})
    assert len(items) == 1 and isinstance(short, Shortfall) and short.missing == 2


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"class": "gamma"}, "class is one of alpha, alpha and beta, beta, little; got 'gamma'"),
        ({"class": 1}, "class is one of"),
        ({"class": ["alpha"]}, "class is one of"),
        ({"n": 0}, "n is a whole number from 1 to 1000; got 0"),
        ({"n": 1001}, "n is a whole number from 1 to 1000"),
        ({"n": True}, "n is a whole number"),
        ({"n": 2.0}, "n is a whole number"),
        ({"seed": -1}, "seed is a whole number"),
        ({"plausible": 1}, "plausible is at least 0 and below 1; got 1"),
        ({"plausible": -0.1}, "plausible is at least 0"),
        ({"plausible": math.nan}, "plausible is at least 0"),
        ({"plausible": "much"}, "plausible is at least 0"),
        ({"plausible": True}, "plausible is at least 0"),
        ({"length": 64}, "generate takes n, seed, class, plausible; got length"),
    ],
)
def test_a_request_that_cannot_be_is_refused_in_words(trained, request_, words):
    with pytest.raises(UserError, match=re.escape(words)):
        next(trained[0].task.generate(trained[0], request_))


def test_the_largest_seed_is_one(trained):
    assert len(asked(trained, n=1, seed=2**63)) == 1


# --- explanations -----------------------------------------------------------------------------


def test_an_explanation_is_a_map_or_withheld(trained):
    model, validation = trained
    record = model.task.parse({"coordinates": validation.value[TRACE][0].tolist()})
    found = model.task.explain(model, record)
    assert found["method"] == "hiding blocks of residue pairs"
    assert found["of"] == model.answer([record])[0]["label"] and found["image"][:4] == PNG
    gated = Model(model.task, model.members, {"explanation": {"passes": False}})
    assert set(gated.task.explain(gated, record)) == {"withheld"}


def test_an_effect_is_what_the_score_falls_by_where_a_block_is_hidden(trained):
    model, validation = trained
    networks, trace = model.members[0], validation.value[TRACE][:1]
    effect = model.task._effects(networks, trace, 2)
    assert effect.shape == (64, 64) and torch.equal(effect, effect.T)
    blocks = effect.view(8, 8, 8, 8)
    assert (blocks == blocks[:, :1, :, :1]).all()  # the same within a block
    image = geometry.image(trace)
    usual = geometry.image(networks["memory"].usual())
    hidden = image.clone()
    hidden[:, :, 8:16, 40:48], hidden[:, :, 40:48, 8:16] = (
        usual[:, :, 8:16, 40:48],
        usual[:, :, 40:48, 8:16],
    )
    with torch.no_grad():
        scores = told(networks["recogniser"], torch.cat([image, hidden]))[1][:, 2]
    assert float(effect[10, 44]) == pytest.approx(float(scores[0] - scores[1]), abs=1e-4)


def test_the_score_is_that_of_the_class_and_has_slopes(trained):
    model, validation = trained
    few = validation.take(torch.arange(3))
    trace = few.value[TRACE].clone().requires_grad_()
    score = model.task.score(model.members[0], instead(few, trace), torch.tensor([0, 1, 2]))
    assert score.shape == (3,)
    score.sum().backward()
    assert torch.isfinite(trace.grad).all() and trace.grad.abs().sum() > 0


def test_attributions_are_accounted_for(trained):
    model, validation = trained
    before = torch.random.get_rng_state()
    found = model.task.accounted(model, validation)
    assert torch.equal(torch.random.get_rng_state(), before)
    (correlation,) = found["correlation"]
    assert found["rows"] == 8 and 0 <= correlation <= 1
    assert found["passes"] == (correlation <= found["limit"])
    assert json.loads(json.dumps(found)) == found
    # A network that learned nothing is its own control.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = {**model.members[0], "recogniser": model.task.networks()["recogniser"]}
    nothing = Model(model.task, [torch.nn.ModuleDict(fresh)], {})
    control = model.task.accounted(nothing, validation)
    assert not control["passes"] and control["correlation"][0] > 0.9  # but for rounding


# --- pictures and settings --------------------------------------------------------------------


def test_near_residues_are_dark_in_a_map(some):
    drawn = np.asarray(Image.open(io.BytesIO(pictures.one_map(some[0]))).convert("L"), float)
    apart = geometry.distances(some[:1])[0].numpy().repeat(4, 0).repeat(4, 1)
    assert drawn[apart < 5].mean() < 0.6 * drawn[apart > 20].mean()


def test_pictures_are_png(some):
    for picture in (
        pictures.maps(some[:3]),
        pictures.shapes(some[:5]),
        pictures.contacts(some, some),
        pictures.pairs(some[0], torch.zeros(64, 64), "nothing speaks"),
        pictures.one_map(some[0]),
    ):
        assert picture[:4] == PNG


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stride": 0}, "task.stride is at least 1; got 0"),
        ({"references": 0}, "task.references is at least 1"),
        ({"penalty": -1.0}, "task.penalty is 0 or more"),
        ({"penalty": math.nan}, "task.penalty is 0 or more"),
        ({"recogniser_dropout": 1.0}, "task.recogniser_dropout is at least 0 and below 1"),
        ({"width": 12}, "multiples of 8"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Proteins(**settings)


# --- jobs ---------------------------------------------------------------------------------------


def test_a_job_writes_structures_that_are_read_again(trained, tmp_path, monkeypatch):
    model, _ = trained
    monkeypatch.setenv("AIGC_HOME", str(tmp_path / "home"))
    info = {
        "task": "proteins",
        "configuration": config.to_json(model.task),
        "schema": model.task.schema.to_json(),
    }
    write(tmp_path / "model", [model.members[0].state_dict()], info)
    version = registry.register("proteins", tmp_path / "model")
    out = tmp_path / "made"
    told = generate.generate(f"proteins:{version}", 2, str(out), 1, {"plausible": "0"})
    lines = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert told["n"] == len(lines) == 2
    for line in lines:
        (chain,) = structures.parse((out / line["pdb"]).read_bytes(), line["pdb"])
        assert np.abs(chain.backbone[:, 1] - np.array(line["coordinates"])).max() < 2e-3
        assert (out / line["map"]).read_bytes()[:4] == b"\x89PNG"
