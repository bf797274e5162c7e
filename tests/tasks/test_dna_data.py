"""Sequences come in as they are found in files, each molecule once, and in one split only."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aigc_ray import rows, tables
from aigc_ray.errors import UserError
from aigc_ray.ingest import ingest
from aigc_ray.tasks.dna import data, metrics, phantoms
from aigc_ray.tasks.dna.task import Dna
from tests import sequence_files
from tests.sequence_files import other_strand

PARTS = ("train", "val", "test")
ODD = "ACGGTACCATGCATTGCAAGGCTTACGATCCGATTACAGA"  # 40 letters, none of the made ones


def taken(tmp_path: Path, source: Path, most: float = 0.05, **settings: Any):
    """(sequence, class) pairs by split, and the manifest."""
    where = str(tmp_path / "data")
    found = ingest(Dna(**settings), str(source), where, parallel=0, max_reject_fraction=most)
    classes = next(field["values"] for field in found["schema"] if field["name"] == "label")
    loaded = {}
    for part in PARTS:
        columns = rows.load(where, found, part, ["sequence", "label"])
        texts = [data.text_of(torch.from_numpy(codes.copy())) for codes in columns["sequence"]]
        names = [classes[number] for number in columns["label"]]
        loaded[part] = list(zip(texts, names, strict=True))
    return loaded, found


def every(loaded):
    return {pair for pairs in loaded.values() for pair in pairs}


def table(path: Path, *extra: str, header: str = "sequence,label", count: int = 200) -> Path:
    """A table with these lines after as many others as a data set needs."""
    more = "," * (header.count(",") - 1)
    lines = [f"{text},{name}{more}" for text, name in sequence_files.sequences(count)]
    path.write_text("\n".join([header, *lines, *extra]) + "\n")
    return path


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".fa", ".fasta", ".fa.gz", ".parquet"])
def test_every_kind_of_file_gives_the_same_sequences(tmp_path, ending):
    sequence_files.write(tmp_path / f"some{ending}", 160)
    loaded, found = taken(tmp_path, tmp_path / f"some{ending}")
    assert every(loaded) == set(sequence_files.sequences(160))
    assert sum(map(len, loaded.values())) == 160
    assert found["rejects"]["count"] == 0
    assert found["schema"][0]["shape"] == [40]
    assert found["schema"][1]["values"] == ["other", "promoter"]


def test_a_file_of_fasta_gives_its_class_by_its_name(tmp_path):
    sequence_files.write_fasta(tmp_path / "in", 160, ending=".fna.gz")
    loaded, _ = taken(tmp_path, tmp_path / "in")
    plain = dict(sequence_files.sequences(160))
    found = every(loaded)
    assert len(found) == 160
    unknown = 0
    for text, name in found:
        assert set(text) <= set("ACGTN")
        if "N" in text:
            unknown += 1
            assert text[5] == "N" and text.count("N") == 1
        else:
            assert plain[text] == name
    assert unknown == 32


def test_the_class_in_a_header_goes_before_the_name_of_the_file(tmp_path):
    pairs = sequence_files.sequences(160)
    text = sequence_files.fasta(pairs[:80], told=True) + sequence_files.fasta(pairs[80:])
    sequence_files.put(tmp_path / "unsorted.fa", text)
    loaded, found = taken(tmp_path, tmp_path / "unsorted.fa")
    assert found["schema"][1]["values"] == ["other", "promoter", "unsorted"]
    assert every(loaded) == {*pairs[:80], *((text, "unsorted") for text, _ in pairs[80:])}


@pytest.mark.parametrize("gap", [" ", "\t", "   "])
def test_whatever_space_stands_after_a_headers_name(tmp_path, gap):
    pairs = sequence_files.sequences(160)
    lines = [f">s{n}{gap}label={name}\n{text}\n" for n, (text, name) in enumerate(pairs)]
    sequence_files.put(tmp_path / "some.fa", "".join(lines))
    loaded, _ = taken(tmp_path, tmp_path / "some.fa")
    assert every(loaded) == set(pairs)


def test_the_columns_may_have_other_names(tmp_path):
    table(tmp_path / "a.csv", header="DNA,Class")
    table(tmp_path / "b.csv", header="seq,kind")
    for name, settings in (("a", {}), ("b", {"label": "kind"})):
        (tmp_path / name).mkdir()
        loaded, _ = taken(tmp_path / name, tmp_path / f"{name}.csv", **settings)
        assert every(loaded) == set(sequence_files.sequences(200))


# --- splits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["names", "folders"])
def test_names_of_files_and_folders_say_where_sequences_belong(tmp_path, how):
    wanted = {}
    for seed, (word, part) in enumerate((("train", "train"), ("dev", "val"), ("test", "test"))):
        folder = tmp_path / "in" / (word if how == "folders" else "")
        mark = f"_{word}" if how == "names" else ""
        sequence_files.write_fasta(folder, 40, seed=seed, mark=mark)
        wanted[part] = {text for text, _ in sequence_files.sequences(40, seed=seed)}
    loaded, found = taken(tmp_path, tmp_path / "in")
    assert found["schema"][1]["values"] == ["other", "promoter"]  # no word of splits in them
    for part, pairs in loaded.items():
        assert len(pairs) == 40
        assert {text for text, _ in pairs if "N" not in text} <= wanted[part]


def test_a_column_says_where_sequences_belong(tmp_path):
    sequence_files.write(tmp_path / "some.csv", 120, splits=True)
    loaded, _ = taken(tmp_path, tmp_path / "some.csv")
    pairs = sequence_files.sequences(120)
    for place, part in enumerate(PARTS):
        assert loaded[part] == [pair for n, pair in enumerate(pairs) if n // 2 % 3 == place]


def test_without_splits_sequences_are_drawn_into_all_three(tmp_path):
    sequence_files.write(tmp_path / "some.csv", 400)
    loaded, _ = taken(tmp_path, tmp_path / "some.csv")
    sizes = [len(loaded[part]) for part in PARTS]
    assert sum(sizes) == 400
    assert 250 < sizes[0] < 310 and 20 < sizes[1] < 60 and 55 < sizes[2] < 105


def test_neither_a_sequence_nor_its_other_strand_lies_in_two_splits(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    pairs = {part: sequence_files.sequences(40, seed=n) for n, part in enumerate(PARTS)}
    (one, name), (two, other) = pairs["test"][:2]
    pairs["train"] += [(one, name), (other_strand(two), other)]
    pairs["val"] += [(other_strand(one), name)]
    for part, every_pair in pairs.items():
        lines = "".join(f"{text},{name}\n" for text, name in every_pair)
        (source / f"{part}.csv").write_text(f"sequence,label\n{lines}")
    loaded, found = taken(tmp_path, source)
    assert [len(loaded[part]) for part in PARTS] == [40, 40, 40]
    assert (one, name) in loaded["test"] and (two, other) in loaded["test"]
    assert found["duplicates"]["across"] == {"train/test": 2, "val/test": 1}


def test_within_a_split_only_the_first_of_equal_molecules_is_kept(tmp_path):
    again = [f"{ODD},other", f"{other_strand(ODD)},promoter", f"{ODD.lower()},other"]
    loaded, found = taken(tmp_path, table(tmp_path / "some.csv", *again))
    assert (ODD, "other") in every(loaded)
    assert not {(other_strand(ODD), "promoter"), (ODD, "promoter")} & every(loaded)
    assert sum(map(len, loaded.values())) == 201
    assert sum(found["duplicates"]["within"].values()) == 2
    assert found["duplicates"]["across"] == {}


def test_a_family_stays_in_one_split(tmp_path):
    pairs = sequence_files.sequences(300)
    lines = [f"{text},{name},f{n // 6}" for n, (text, name) in enumerate(pairs)]
    (tmp_path / "some.csv").write_text("\n".join(["sequence,label,family", *lines]))
    loaded, found = taken(tmp_path, tmp_path / "some.csv")
    where: dict[int, set[str]] = {}
    for part, found_pairs in loaded.items():
        for pair in found_pairs:
            where.setdefault(pairs.index(pair) // 6, set()).add(part)
    assert len(where) == 50 and all(len(parts) == 1 for parts in where.values())
    assert found["patients"]["known"] == 50


# --- what is set aside ------------------------------------------------------------------------


def test_bad_rows_are_set_aside_with_their_reasons_and_counted(tmp_path):
    strange = ODD[:6] + "X" + ODD[7:]
    bad = [
        f"{strange},other,",
        f"{strange},promoter,",
        f"{ODD.replace('T', 'U')},other,",
        ",other,",
        f"{ODD[1:]},other,",
        f"{'N' * 5}{ODD[5:]},other,",
        f"{ODD},,",
        f"{ODD},other,perhaps",
        f"{ODD},other",
    ]
    good = f"{'NRYN'}{ODD[4:]},other,"
    path = table(tmp_path / "some.csv", *bad, good, header="sequence,label,split")
    loaded, found = taken(tmp_path, path)
    assert ("NNNN" + ODD[4:], "other") in every(loaded)  # as many as are allowed
    assert found["rejects"]["count"] == 9
    letters = "letters of DNA are A, C, G, T and N"
    place = ODD.index("T") + 1
    assert found["rejects"]["reasons"] == {
        f"sequence has 'X' at position 7; {letters}": 2,
        f"sequence has 'U' at position {place}; {letters}; RNA is not read, write T for U": 1,
        "sequence is empty": 1,
        "sequence has 39 letters; 40 are read": 1,
        "sequence has 5 letters that stand for several bases; of 40 at most 4 are read": 1,
        "label is empty; every sequence needs a class": 1,
        "split is train, val or test; got 'perhaps'": 1,
        "the row has not the form of its file": 1,
    }


def test_a_share_of_unknown_letters_is_told_so_that_it_is_above_what_is_allowed():
    with pytest.raises(UserError) as fault:
        data.coded("N" * 5 + ("ACGT" * 11)[:43], 48)
    assert "10% letters" not in str(fault.value)


def test_a_whole_chromosome_is_set_aside_and_never_held_whole(tmp_path):
    path = tmp_path / "some.fa"
    sequence_files.write(path, 200)
    with path.open("a") as file:
        file.write(">chr1 label=other\n" + "ACGTTGCAAC" * 1_000_000 + "\n")
    loaded, found = taken(tmp_path, path)
    assert every(loaded) == set(sequence_files.sequences(200))
    assert found["rejects"]["reasons"] == {
        f"sequence has {tables.LETTERS} or more letters; 40 are read": 1
    }
    tracemalloc.start()
    try:
        sizes = [len(row["sequence"]) for row in tables.read(str(path)) if row is not None]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes == [40] * 200 + [tables.LETTERS]
    assert peak < 4 << 20


def test_of_a_sequence_that_was_cut_in_reading_no_middle_is_taken(tmp_path):
    """The middle of what is left is not the middle of the sequence."""
    path = tmp_path / "some.fa"
    sequence_files.write(path, 200)
    with path.open("a") as file:
        file.write(">chr1 label=other\n" + "ACGTTGCAAC" * 20_000 + "\n")
    loaded, found = taken(tmp_path, path, length=40)
    assert every(loaded) == set(sequence_files.sequences(200))
    assert found["rejects"]["count"] == 1


def test_a_very_long_header_is_read_up_to_its_end(tmp_path):
    path = tmp_path / "some.fa"
    sequence_files.write(path, 200)
    with path.open("a") as file:
        file.write(f">long label=other {'x' * 200_000}\n{ODD}\n>next label=promoter\n")
        file.write(f"{other_strand(ODD[::-1])}\n")
    loaded, found = taken(tmp_path, path)
    assert {(ODD, "other"), (other_strand(ODD[::-1]), "promoter")} <= every(loaded)
    assert found["rejects"]["count"] == 0


# --- lengths ----------------------------------------------------------------------------------


def test_of_longer_sequences_the_middle_is_taken_and_shorter_ones_are_set_aside(tmp_path):
    long, odd, short = (
        sequence_files.sequences(80, length, seed=length) for length in (60, 39, 30)
    )
    lines = [f"{text},{name}" for text, name in (*long, *odd, *short[:4])]
    (tmp_path / "some.csv").write_text("\n".join(["sequence,label", *lines]))
    loaded, found = taken(tmp_path, tmp_path / "some.csv", length=36)
    middles = {(text[12:48], name) for text, name in long}
    assert every(loaded) == middles | {(text[1:37], name) for text, name in odd}
    assert found["rejects"]["reasons"] == {"sequence has 30 letters; 36 are read": 4}


def test_lengths_that_differ_are_refused_unless_one_is_named(tmp_path):
    lines = [
        f"{text},{name}"
        for length in (30, 33, 36)
        for text, name in sequence_files.sequences(40, length)
    ]
    (tmp_path / "some.csv").write_text("\n".join(["sequence,label", *lines]))
    with pytest.raises(UserError, match="sequences of 30 to 36 letters: say length=N"):
        Dna().survey(str(tmp_path / "some.csv"))


@pytest.mark.parametrize("length", [15, 2001])
def test_lengths_out_of_bounds_are_refused(tmp_path, length):
    with pytest.raises(UserError, match=f"task.length is from 16 to 2000; got {length}"):
        Dna(length=length)
    lines = [f"{'ACGTG' * 500}{n}"[:length] + f",{'ab'[n % 2]}" for n in range(4)]
    (tmp_path / "some.csv").write_text("\n".join(["sequence,label", *lines]))
    with pytest.raises(UserError, match=f"sequences of {length} letters; 16 to 2000"):
        Dna().survey(str(tmp_path / "some.csv"))


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "name,weight\nx,1\n", "no column called sequence or seq or dna; its columns are"),
        ("a.csv", f"sequence,weight\n{ODD},1\n", "no column called label or class or target or y"),
        ("a.csv", f"name,weight\nx\n{ODD},1\n", "no column called sequence or seq or dna"),
        ("a.csv", f"sequence,weight\nx\n{ODD},1\n", "no column called label or class or target"),
        ("a.csv", f"sequence,label\n{ODD},one\n", "has one class; two at least are needed"),
        ("a.csv", f"sequence,label\n{ODD},\n", "has no classes; two at least are needed"),
        ("a.csv", "sequence,label\n", "holds no sequences"),
        ("a.csv", "", "it has no header"),
        ("a.fa", "", "holds no sequences"),
        ("a.fa", f">x\n{ODD}\n", "has one class; two at least are needed"),
        ("a.fa", f"{ODD}\n>x\n{ODD}\n", "the first line of FASTA begins with >"),
        ("a.fa.gz", f">x\n{ODD}\n", "a.fa.gz (is not readable|cannot be read)"),
        ("a.txt", ODD, "holds no sequences: files whose names end in .csv"),
    ],
)
def test_a_source_that_cannot_be_is_refused_in_words(tmp_path, name, content, words):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(content)
    for source in (tmp_path / "in", tmp_path / "in" / name):
        if source.suffix == ".txt":
            continue
        with pytest.raises(UserError, match=words):
            Dna().survey(str(source))


def test_a_source_that_is_not_there_and_a_column_of_names_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.csv does not exist"):
        Dna().survey(str(tmp_path / "nothing.csv"))
    lines = [f"{text},n{n}" for n, (text, _) in enumerate(sequence_files.sequences(150))]
    (tmp_path / "some.csv").write_text("\n".join(["sequence,label", *lines]))
    with pytest.raises(UserError, match="more than 100 classes; name their column as label=NAME"):
        Dna().survey(str(tmp_path / "some.csv"))
    table(tmp_path / "other.csv")
    with pytest.raises(UserError, match="no column called kind; its columns are sequence, label"):
        Dna(label="kind").survey(str(tmp_path / "other.csv"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("width", 0), ("candidates", 0), ("recogniser_dropout", 1.0)],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused_by_its_name(key, value):
    with pytest.raises(UserError, match=f"task.{key} is"):
        Dna(**{key: value})


# --- phantoms ---------------------------------------------------------------------------------


def test_phantoms_are_seeded_all_read_and_flagged(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        phantoms.write(tmp_path / f"{name}.csv", train=60, val=20, test=20, seed=seed)
    a, b, c = ((tmp_path / f"{name}.csv").read_text() for name in "abc")
    assert a == b != c
    loaded, found = taken(tmp_path, tmp_path / "a.csv")
    assert {part: len(pairs) for part, pairs in loaded.items()} == {
        "train": 60,
        "val": 20,
        "test": 20,
    }
    assert found["synthetic"] and found["rejects"]["count"] == 0
    assert found["schema"][0]["shape"] == [80]
    assert tuple(found["schema"][1]["values"]) == phantoms.CLASSES
    assert sum(name == "promoter" for _, name in loaded["train"]) == 30
    assert len(every(loaded)) == 100  # none is there twice
    with pytest.raises(UserError, match="at least 70 letters; got 69"):
        phantoms.write(tmp_path / "d.csv", length=69)


@pytest.mark.parametrize("length", [70, 80, 200])
def test_motifs_of_phantoms_stand_where_they_should(length):
    label = np.arange(600) % 2
    codes = phantoms.draw(label, length, np.random.default_rng(0)) + 1
    at, middle = metrics.places(codes), length // 2 - 12
    near = {
        "tata_box": (0, phantoms.SPREAD, phantoms.KEPT**7),
        "initiator": (phantoms.BEHIND, phantoms.SPREAD, phantoms.KEPT**6),
        "gc_box": (-15, 5 + phantoms.SPREAD, phantoms.GC_BOXES * phantoms.KEPT**6),
    }
    for name, (place, spread, share) in near.items():
        there = np.array([
            any(abs(start - middle - place) <= spread for start in row) for row in at[name]
        ])  # fmt: skip
        assert there[label == 1].mean() == pytest.approx(share, abs=0.08)
        assert there[label == 0].mean() < 0.12
    both = [
        min(abs(second - first - phantoms.BEHIND) for first in one for second in other)
        for one, other in zip(at["tata_box"], at["initiator"], strict=True)
        if one and other
    ]
    assert np.mean(np.array(both) == 0) > 0.6


def test_the_classes_of_phantoms_do_not_differ_in_their_letters():
    codes = phantoms.draw(np.arange(800) % 2, 80, np.random.default_rng(0)) + 1
    share = metrics.composition(codes)
    assert abs(share[::2].mean() - share[1::2].mean()) < 0.04
    assert np.quantile(share, 0.9) - np.quantile(share, 0.1) > 0.3  # rich in A and T, or in G and C


@pytest.mark.parametrize(("word", "flagged"), [("yes", True), ("True", True), ("0", False)])
def test_a_column_says_that_sequences_are_computed(tmp_path, word, flagged):
    lines = [f"{text},{name}," for text, name in sequence_files.sequences(200)]
    lines[50] += word
    (tmp_path / "some.csv").write_text("\n".join(["sequence,label,Synthetic", *lines]) + "\n")
    assert taken(tmp_path, tmp_path / "some.csv")[1]["synthetic"] is flagged


# --- uploads and requests ---------------------------------------------------------------------


def test_an_upload_of_fasta_gives_its_sequences():
    text = f">one first of all\n{ODD[:25].lower()}\n{ODD[25:]}\r\n\n> two\n{ODD}\n>three\n"
    for content, name in ((text.encode(), "x.fa"), (gzip.compress(text.encode()), "x.FA.GZ")):
        assert tables.is_upload(name)
        found = tables.parse(content, name, 10)
        assert [row["name"] for row in found] == ["one", "two", "three"]
        assert [row["sequence"].upper() for row in found] == [ODD, ODD, ""]
        assert found[0]["description"] == "first of all"


def test_an_upload_that_is_broken_is_refused_in_words():
    packed = gzip.compress(f">one\n{ODD}\n".encode() * 50)
    for content, name, words in (
        (packed[:-20], "x.fa.gz", "x.fa.gz is not readable as a table"),
        (b"no gzip at all", "x.fa.gz", "x.fa.gz is not readable as a table"),
        (packed[:20] + b"\xff" * 20 + packed[40:], "x.fa.gz", "x.fa.gz is not readable"),
        (packed, "x.fa", "x.fa is not text"),
        (b"ACGT\n", "x.fa", "x.fa: the first line of FASTA begins with >"),
        (b"", "x.fa", "x.fa holds no rows"),
        (b">a\nA\n>b\nC\n>c\nG\n", "x.fa", "x.fa has more than 2 rows"),
    ):
        with pytest.raises(UserError, match=words):
            tables.parse(content, name, 2 if b">c" in content else 1000)


def test_a_request_names_a_sequence():
    schema = data.schema(40, ("other", "promoter"))
    record = data.parse({"sequence": f" {ODD.lower()}\n", "name": "mine"}, schema)
    assert data.text_of(torch.from_numpy(record["sequence"])) == ODD
    assert record["name"] == "mine" and "warnings" not in record
    unsure = data.parse({"SEQ": f"NR{ODD[2:]}"}, schema)
    assert unsure["warnings"] == ["2 letters are not known"]
    for item, words in (
        ({}, "sequence is a text of letters A, C, G and T; got NoneType"),
        ({"sequence": 3}, "sequence is a text of letters A, C, G and T; got int"),
        ({"sequence": "  "}, "sequence is empty"),
        ({"sequence": ODD + "A"}, "sequence has 41 letters; 40 are read"),
        ({"sequence": ODD[:-1] + "U"}, "'U' at position 40.*write T for U"),
        ({"sequence": ODD[:-1] + "é"}, "'É' at position 40"),
        ({"sequence": ODD[:-1] + "."}, "'.' at position 40"),
        ({"file": b"x", "filename": "x.png"}, "x.png: sequences are read from .fa, .fasta and"),
    ):
        with pytest.raises(UserError, match=words):
            data.parse(item, schema)


def test_codes_go_to_tensors_and_what_is_absent_is_not_known():
    schema = data.schema(40, ("other", "promoter"))
    codes = data.coded("N" + ODD[1:], 40)
    assert codes[:3].tolist() == [0, 2, 3]
    columns = {"sequence": codes[None].repeat(3, 0), "label": torch.tensor([1, -1, 0]).numpy()}
    batch = data.encode(columns, torch.arange(3), schema)
    assert batch.value["sequence"].shape == (3, 40) and batch.known["sequence"].all()
    assert batch.known["label"].tolist() == [True, False, True]
    assert batch.value["label"].tolist() == [1, 0, 0]
    alone = data.encode({"sequence": columns["sequence"]}, torch.arange(3), schema)
    assert not alone.known["label"].any()
    none = data.encode({"label": columns["label"]}, torch.arange(3), schema)
    assert not none.known["sequence"].any() and not none.value["sequence"].any()
