"""Chains come out of files as they are, each window whole, relatives together."""

from __future__ import annotations

import gzip
import random
import zipfile

import numpy as np
import pytest

from aigc_ray.errors import UserError
from aigc_ray.tasks.proteins import homology, sources, structures
from aigc_ray.tasks.proteins.assignment import HELIX, OTHER, STRAND, assign, fold_class
from aigc_ray.tasks.proteins.structures import parse, theoretical
from tests.protein_files import (
    EXTENDED,
    HELICAL,
    blocks,
    cif,
    ideal,
    record,
    residue,
    text,
    trace,
)


def refused(content, name="one.pdb"):
    with pytest.raises(UserError) as error:
        parse(content, name)
    sentence = str(error.value)
    assert sentence.startswith(name) and "\n" not in sentence
    return sentence


def water(number=900, at=(50.0, 0.0, 0.0)):
    return [record("O", "HOH", "A", number, at, kind="HETATM")]


# --- what is read -----------------------------------------------------------------------------


def test_a_chain_comes_out_with_its_letters_numbers_and_backbone():
    (chain,) = parse(text(blocks()), "one.pdb")
    assert chain.name == "A" and chain.sequence[:4] == "ALSK"
    assert chain.number == [str(number) for number in range(1, 71)]
    assert chain.backbone.shape == (70, 4, 3) and chain.backbone.dtype == np.float32
    assert np.allclose(chain.backbone[:, 1], ideal(HELICAL, 70), atol=1e-3)
    assert chain.starts == [0] and list(chain.segments()) == [range(70)]


def test_mmcif_equals_pdb():
    content = text(blocks(), blocks(66, "B", away=40), [water()])
    for one, other in zip(parse(content, "a.pdb"), parse(cif(content), "a.cif"), strict=True):
        assert one[:3] == other[:3] and one.starts == other.starts
        assert np.array_equal(one.backbone, other.backbone)


def test_a_compressed_file_equals_a_plain_one():
    content = text(blocks())
    (one,), (other,) = parse(content, "a.pdb"), parse(gzip.compress(content), "a.pdb.gz")
    assert np.array_equal(one.backbone, other.backbone)


def test_what_is_absent_is_nan():
    made = blocks()
    made[5] = made[5][1:2]  # the CA alone
    (chain,) = parse(text(made), "one.pdb")
    assert np.isnan(chain.backbone[5, [0, 2, 3]]).all() and np.isfinite(chain.backbone[5, 1]).all()
    assert len(chain.starts) == 1


def test_water_ions_ligands_and_nucleic_acids_are_no_residues():
    calcium = [record("CAL", "CA", "A", 901, (3, 3, 3), kind="HETATM")]
    free = residue(ideal(HELICAL, 2) + 50, 0, "GLU", number=902, kind="HETATM")
    ligand = [record(a, "XYZ", "A", 903, (60, i, 0), kind="HETATM") for i, a in enumerate("NCO")]
    dna = [[record("P", " DA", "D", i, (i, 70, 0))] for i in range(1, 80)]
    (chain,) = parse(text(blocks(), [calcium, free, ligand, water()], dna), "one.pdb")
    assert len(chain.sequence) == 70


def test_modified_residues_count_where_they_are_bonded():
    ca, made = ideal(HELICAL, 70), blocks()
    made[10] = residue(ca, 10, "MSE", kind="HETATM")
    made[11] = residue(ca, 11, "QQQ", kind="HETATM")  # of which nobody knows the parent
    (chain,) = parse(text(made), "one.pdb")
    assert chain.sequence[10:12] == "MX" and len(chain.sequence) == 70


def test_the_first_model_of_an_ensemble_is_read():
    def model(number, away):
        lines = text(blocks(away=away)).decode().replace("END\n", "ENDMDL\n")
        return f"MODEL     {number:>4}\n{lines}"

    content = (model(1, 0) + model(2, 9) + "END\n").encode()
    for one in (parse(content, "a.pdb"), parse(cif(content), "a.cif")):
        assert len(one) == 1 and len(one[0].sequence) == 70
        assert np.allclose(one[0].backbone[:, 1], ideal(HELICAL, 70), atol=1e-3)


def test_the_alternate_location_of_the_highest_occupancy_is_taken_whole():
    ca, made = ideal(HELICAL, 70), blocks()
    for place, shares in ((20, (0.3, 0.7)), (30, (0.5, 0.5))):
        both = [
            residue(ca + move, place, alt=alt, share=share)
            for alt, share, move in zip("AB", shares, (0.0, 0.1), strict=True)
        ]
        made[place] = [line for pair in zip(*both, strict=True) for line in pair]
    for content in (text(made), cif(text(made))):
        (chain,) = parse(content, "one")
        plain = parse(text(blocks()), "one.pdb")[0].backbone
        assert np.allclose(chain.backbone[20] - plain[20], 0.1, atol=2e-3)
        assert np.allclose(chain.backbone[30], plain[30], atol=2e-3)  # the first on ties


def test_locations_are_never_mixed_within_a_residue():
    ca, made = ideal(HELICAL, 70), blocks()
    b = residue(ca, 20, alt="B", share=0.6)
    made[20] = [*residue(ca, 20, alt="A", share=0.4), *b[:3]]  # of B no O is known
    (chain,) = parse(text(made), "one.pdb")
    assert np.isfinite(chain.backbone[20, :3]).all() and np.isnan(chain.backbone[20, 3]).all()


def test_of_two_amino_acids_at_one_place_the_likelier_is_taken():
    ca, made = ideal(HELICAL, 70), blocks()
    made[20] = [
        *residue(ca, 20, "SER", alt="A", share=0.4),
        *residue(ca, 20, "TRP", alt="B", share=0.6),
    ]
    (chain,) = parse(text(made), "one.pdb")
    assert chain.sequence[20] == "W" and len(chain.sequence) == 70


def test_a_break_starts_a_segment_and_a_cis_peptide_does_not():
    ca = ideal(HELICAL, 160)
    ca[80:] += ca[79] - ca[80] + 2.9 * (ca[80] - ca[79]) / 3.8  # CA atoms are 2.9 Å apart
    ca[120:] += 30
    made = [residue(ca, i) for i in range(160)]
    (chain,) = parse(text(made), "one.pdb")
    assert chain.starts == [0, 120]


def test_a_ter_at_a_break_ends_no_chain():
    made = blocks(140)
    made.insert(70, ["TER      71      ALA A  70"])
    (chain,) = parse(text(made), "one.pdb")
    assert len(chain.sequence) == 140


def test_numbers_may_fall_where_the_peptide_goes_on():
    ca = ideal(HELICAL, 70)  # a cloned end: 1X, 2X, 3X, 4X, 2, 3, ...
    made = [residue(ca, i, number=i + 1, insertion="X") for i in range(4)]
    made += [residue(ca, i, number=i - 2) for i in range(4, 70)]
    (chain,) = parse(text(made), "one.pdb")
    assert chain.number[:6] == ["1X", "2X", "3X", "4X", "2", "3"] and chain.starts == [0]


def test_chains_without_a_window_are_left_out():
    assert [c.name for c in parse(text(blocks(10, "S", away=60), blocks()), "one.pdb")] == ["A"]


def test_what_old_files_have_behind_the_b_factor_is_no_matter():
    old = "\n".join(line[:66] + "  1ACB 85" for block in blocks() for line in block)
    assert len(parse(old.encode(), "one.pdb")) == 1


MODEL = b"EXPDTA    THEORETICAL MODEL\n"
EXPTL = b"data_1ABC\n%s\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n1 2.0\n"


@pytest.mark.parametrize(
    "content",
    [
        MODEL,
        b"HEADER    A\r\nEXPDTA    SOLUTION NMR; THEORETICAL MODEL\r\n",
        b"EXPDTA    SOLUTION NMR;\nEXPDTA   2 THEORETICAL MODEL\n",
        EXPTL % b"_exptl.method 'THEORETICAL MODEL'",
        EXPTL % b"_exptl.method\n;Theoretical model\n;",
        EXPTL
        % b"loop_\n_exptl.entry_id\n_exptl.method\n1ABC 'SOLUTION NMR'\n1ABC 'theoretical model'",
    ],
)
def test_a_file_says_that_it_is_a_model(content):
    assert theoretical(content) and theoretical(gzip.compress(content))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x1f\x8b broken",
        gzip.compress(MODEL, mtime=0)[:-12],
        b"EXPDTA    X-RAY DIFFRACTION\nREMARK   1 THEORETICAL MODEL\n",
        b"REMARK   1 EXPDTA    THEORETICAL MODEL\n",
        EXPTL % b"_exptl.method 'X-RAY DIFFRACTION'\n_exptl.details 'THEORETICAL MODEL'",
        EXPTL % b"_exptl.method 'THEORETICAL MODEL'\n_exptl.details 'open",
        text(blocks()),
        cif(text(blocks())),
    ],
)
def test_a_file_that_is_measured_or_broken_says_no_such_thing(content):
    assert not theoretical(content)


def test_models_are_marked_in_a_source(tmp_path):
    (tmp_path / "1abc.pdb").write_bytes(text(blocks()))
    (tmp_path / "made.pdb").write_bytes(MODEL + text(blocks(kind=EXTENDED)))
    (tmp_path / "made.cif.gz").write_bytes(gzip.compress(cif(MODEL + text(blocks(80)))))
    marked = {piece["name"]: piece.get("synthetic") for piece in sources.survey(str(tmp_path))}
    assert marked == {"1abc.pdb": None, "made.pdb": True, "made.cif.gz": True}


# --- what is refused --------------------------------------------------------------------------


def test_what_is_no_structure_is_refused():
    assert "is empty" in refused(b"") and "is empty" in refused(gzip.compress(b" \n"))
    assert "neither PDB nor mmCIF" in refused(b"file,pdb_id\n1aki.cif,1AKI\n")
    assert "neither PDB nor mmCIF" in refused(bytes(range(256)) * 9)
    assert "_atom_site is missing" in refused(b"data_1abc\n_cell.length_a 4\n", "one.cif")
    assert "broken .gz" in refused(gzip.compress(text(blocks()))[:-99])


def test_a_truncated_file_is_refused():
    whole = cif(text(blocks()))
    assert "not readable as mmCIF" in refused(whole[: whole.rindex(b"ALA") + 3], "one.cif")
    assert "not readable as mmCIF" in refused(whole[:-80] + b"'never closed\n", "one.cif")
    assert "not readable as PDB" in refused(text(blocks())[:-60])


def test_a_file_without_a_protein_is_refused():
    dna = [[record("P", " DA", "D", i, (i, 70, 0))] for i in range(1, 80)]
    assert "nucleic acids only" in refused(text(dna))
    assert "no CA atoms" in refused(text([water(i) for i in range(1, 80)]))
    calcium = [[record("CAL", "CA", "A", i, (3.8 * i, 0, 0))] for i in range(1, 80)]
    assert "no CA atoms" in refused(text(calcium))


def test_short_segments_are_refused_with_their_length():
    ca = ideal(HELICAL, 110)
    ca[60:] += 30
    sentence = refused(text([residue(ca, i) for i in range(110)]))
    assert "has 60 residues" in sentence and "64 are needed" in sentence


def test_residues_out_of_order_are_refused():
    made = blocks()
    for content in (text(made[:20], made[40:], made[20:40]), text(made[::-1])):
        assert "out of order" in refused(content)
    swapped = [*made[:20], made[21], made[20], *made[22:]]
    assert "residue 21 comes after 22" in refused(text(swapped))


def test_a_residue_that_stands_twice_is_refused():
    made, ca = blocks(), ideal(HELICAL, 70)
    assert "residue 21 twice" in refused(text(made[:22], [made[20]], made[22:]))
    other = residue(ca, 20, "TRP")
    assert "residue 21 twice" in refused(text(made[:21], [other], made[21:]))
    assert "twice" in refused(text(made, blocks(70, away=50)))


@pytest.mark.parametrize("written", ["     nan", "     inf", "********", "        ", "   1.2.3"])
def test_coordinates_that_are_no_numbers_are_refused(written):
    made = blocks()
    made[9] = [line[:30] + written + line[38:] for line in made[9]]
    assert "not finite" in refused(text(made))


def test_the_same_holds_for_mmcif():
    whole = cif(text(blocks())).decode()
    x = parse(text(blocks()), "one.pdb")[0].backbone[9, 1, 0]
    for written in ("?", "nan", "1e39"):
        assert f" {x:.3f} " in whole or f" {x:g} " in whole
        broken = whole.replace(f" {x:g} ", f" {written} ")
        assert "not finite" in refused(broken.encode(), "one.cif")


def test_sizes_are_bounded(monkeypatch):
    bomb = gzip.compress(bytes(1 << 20) * 65)
    assert "64 MiB" in refused(bomb)
    content = text(blocks())
    for limit, most, what in (
        ("RESIDUES", 50, "50 residues"),
        ("ATOMS", 100, "100 atoms"),
        ("CHAINS", 0, "0 changes of the chain"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(structures, limit, most)
            for form in (content, cif(content)):
                assert f"more than the {what} allowed" in refused(form)


def test_sizes_of_later_models_are_no_matter(monkeypatch):
    lines = text(blocks()).decode().replace("END\n", "ENDMDL\n")
    content = "".join(f"MODEL     {number:>4}\n{lines}" for number in (1, 2, 3)).encode()
    monkeypatch.setattr(structures, "ATOMS", 280)
    assert len(parse(content, "one.pdb")) == len(parse(cif(content), "one.cif")) == 1


@pytest.mark.parametrize("form", [text, lambda made: cif(text(made))], ids=["pdb", "cif"])
def test_damaged_files_are_read_or_refused_and_never_crash(form):
    whole, draw = form(blocks()), random.Random(0)
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(broken))
            broken[place : place + draw.randint(1, 9)] = draw.randbytes(draw.randint(0, 9))
        try:
            parse(bytes(broken), "one")
        except UserError as error:
            assert "\n" not in str(error)


# --- secondary structure ----------------------------------------------------------------------


def test_an_ideal_helix_is_one_but_for_its_ends():
    states = assign(ideal(HELICAL, 40))
    assert states.dtype == np.int8 and (states[1:-1] == HELIX).all()
    assert fold_class(states) == "alpha"


def test_distances_alone_do_not_tell_a_mirror_image():
    mirrored = ideal((HELICAL[0], -HELICAL[1]), 40)
    assert (assign(mirrored)[1:-3] == HELIX).all()


def test_an_ideal_strand_is_one():
    states = assign(ideal(EXTENDED, 40))
    assert (states[2:-3] == STRAND).all() and not (states == HELIX).any()
    assert fold_class(states) == "beta"


def test_a_short_strand_counts_beside_another_only():
    strand = ideal(EXTENDED, 6)  # of three residues the angle and the dihedral are known
    loop = ideal((110.0, 100.0), 8) + 40
    across = np.cross(strand[1] - strand[0], strand[2] - strand[1])
    across *= 4.8 / np.linalg.norm(across)
    beside = assign(np.concatenate([strand, loop, strand + across]))
    alone = assign(np.concatenate([strand, loop, strand + 3 * across]))
    assert (beside[1:4] == STRAND).all() and (beside[15:18] == STRAND).all()
    assert (alone == OTHER).all()


def test_random_coil_is_neither():
    generator = np.random.default_rng(0)
    states = np.concatenate(
        [
            assign(trace(generator.uniform(80, 145, 64), generator.uniform(-180, 180, 64)))
            for _ in range(20)
        ]
    )
    assert np.mean(states == OTHER) > 0.9


def test_an_assignment_does_not_depend_on_where_a_chain_lies():
    ca = np.concatenate([ideal(HELICAL, 30), ideal(EXTENDED, 30) + 20])
    turned = ca[:, [1, 2, 0]] + 7  # an even permutation of the axes is a rotation
    assert np.array_equal(assign(ca), assign(turned))


def test_short_stretches_are_other():
    for count in range(6):
        assert assign(np.zeros((count, 3))).tolist() == [OTHER] * count


def test_a_class_goes_by_shares():
    def mixed(helix, strand):
        return np.repeat([HELIX, STRAND, OTHER], [helix, strand, 64 - helix - strand])

    assert fold_class(mixed(10, 7)) == "alpha and beta" and fold_class(mixed(10, 6)) == "alpha"
    assert fold_class(mixed(9, 7)) == "beta" and fold_class(mixed(9, 6)) == "little"


# --- relatives --------------------------------------------------------------------------------


def letters(count, seed):
    return "".join(random.Random(seed).choices("ACDEFGHIKLMNPQRSTVWY", k=count))


def mutated(sequence, identity, seed):
    draw = random.Random(seed)
    kept = [c if draw.random() < identity else draw.choice(homology._LETTERS) for c in sequence]
    del kept[40:43]  # and a gap
    return "".join(kept)


def test_mutated_copies_are_relatives_and_random_chains_are_not():
    parents = [letters(150, seed) for seed in range(20)]
    copies = [mutated(parent, 0.47, seed) for seed, parent in enumerate(parents)]
    found = homology.clusters([*parents, *copies], [str(i) for i in range(40)])
    assert found == [*range(20), *range(20)]


def test_chains_of_one_entry_and_relatives_of_relatives_stay_together():
    a, b, c, d = (letters(100, seed) for seed in range(4))
    entries = ["one", "one", "two", "two", "three"]
    assert homology.clusters([a, b, b, c, d], entries) == [0, 0, 0, 0, 1]


def test_a_domain_within_a_longer_chain_is_a_relative():
    domain = letters(90, 5)
    assert homology.related(domain, letters(200, 6) + mutated(domain, 0.6, 7))
    assert not homology.related(domain, letters(290, 8))


def test_strange_and_empty_sequences_are_like_no_other():
    found = homology.clusters(["", "", "X" * 80, "AX", "é" * 70], list("abcde"))
    assert found == [0, 1, 2, 3, 4]
    assert homology.clusters([], []) == []


# --- sources ----------------------------------------------------------------------------------


def packed(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def made_files():
    one = text(blocks())
    return {
        "1abc.pdb": one,
        "1abc.cif": cif(one),
        "two/COMP_r_b.pdb": text(blocks(90, kind=EXTENDED)),
        "two/broken.pdb.gz": b"no gzip",
        "index.csv": b"file,class\n1abc.pdb,alpha\n",
    }


def test_a_zip_equals_a_folder(tmp_path):
    for name, content in made_files().items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    archive = packed(tmp_path / "all.zip", made_files())
    before = sorted(tmp_path.rglob("*"))
    folder, zipped = sources.survey(str(tmp_path / "folder")), sources.survey(archive)
    assert [(p["name"], p["group"]) for p in folder] == [(p["name"], p["group"]) for p in zipped]
    assert [p["name"] for p in zipped] == sorted(set(made_files()) - {"index.csv"})
    assert {p["path"] for p in zipped} == {archive} and folder[0]["member"] is None
    assert np.array_equal(
        sources.chains_of(folder[0])[0].backbone, sources.chains_of(zipped[0])[0].backbone
    )
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked
    assert len(sources.survey(str(tmp_path))) == len(folder) + len(zipped)


def test_forms_of_an_entry_share_a_family_and_a_broken_file_is_a_piece(tmp_path):
    pieces = {p["name"]: p for p in sources.survey(packed(tmp_path / "all.zip", made_files()))}
    assert pieces["1abc.pdb"]["group"] == pieces["1abc.cif"]["group"] == "family 0"
    with pytest.raises(UserError, match="neither PDB nor mmCIF"):
        sources.chains_of(pieces["two/broken.pdb.gz"])


def test_a_single_file_is_a_source(tmp_path):
    path = tmp_path / "1abc.ent"
    path.write_bytes(text(blocks()))
    assert sources.survey(str(path)) == [
        {"path": str(path), "name": "1abc.ent", "member": None, "group": "family 0"}
        | {"split": "train", "rows": 2}
    ]


def test_of_identical_chains_the_first_is_kept(tmp_path):
    path = tmp_path / "dimer.pdb"
    path.write_bytes(text(blocks(), blocks(70, "B", away=40), blocks(80, "C", away=80)))
    (piece,) = sources.survey(str(path))
    assert [chain.name for chain in sources.chains_of(piece)] == ["A", "C"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1ABC.cif.gz", "1abc"),
        ("pdb1abc.ent", "1abc"),
        ("pdb_00001abc.cif", "1abc"),
        ("a/1abc_A.pdb", "1abc"),
        ("1ACB_l_b-matched.pdb", "1acb"),
        ("BAAD_r_b-matched.pdb", "baad"),
        ("BAAD_l_b-matched.pdb", "baad"),
        ("mine/model.pdb", "mine/model"),
        ("1abcdef.pdb", "1abcdef"),
    ],
)
def test_an_entry_is_told_by_the_name(name, expected):
    assert sources.entry(name) == expected


def test_a_source_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        sources.survey(str(tmp_path / "none.zip"))
    with pytest.raises(UserError, match="does not exist"):
        sources.survey(str(tmp_path / "none.pdb"))
    with pytest.raises(UserError, match="holds no structures"):
        sources.survey(packed(tmp_path / "table.zip", {"index.csv": b"a\n"}))
    for content in (b"", b"PK\x03\x04 broken", bytes(100)):
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a zip file"):
            sources.survey(str(tmp_path / "bad.zip"))


def test_a_members_size_is_bounded(tmp_path):
    archive = packed(tmp_path / "bomb.zip", {"1abc.pdb": bytes(1 << 20) * 65})
    (piece,) = sources.survey(archive)
    with pytest.raises(UserError, match="64 MiB"):
        sources.chains_of(piece)


def test_a_damaged_member_is_a_piece(tmp_path):
    path = tmp_path / "bad.zip"
    packed(path, {"1abc.pdb": text(blocks())})
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    (piece,) = sources.survey(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        sources.chains_of(piece)


def test_windows_cover_a_segment_and_never_cross_a_break():
    ca = ideal(HELICAL, 200)
    ca[75:] += 30
    (chain,) = parse(text([residue(ca, i) for i in range(200)]), "one.pdb")
    found = list(sources.windows(chain, 8))
    assert [w.start for w in found] == [0, 8, 11, *range(75, 136, 8), 136]
    for one in found:
        assert one.stop - one.start == structures.WINDOW
        assert not any(one.start < start < one.stop for start in chain.starts)
    covered = {place for one in found for place in range(one.start, one.stop)}
    assert covered == set(range(200))
