"""Molecules come in as they are found in files, canonical, described, each once."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem, RDConfig
from rdkit.Chem import QED

from aigc_ray import rows
from aigc_ray.errors import UserError
from aigc_ray.ingest import ingest
from aigc_ray.schema import Schema
from aigc_ray.tasks.molecules import alphabet, chemistry, data
from aigc_ray.tasks.molecules.task import Molecules
from tests import molecule_files

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
NCI = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"


def taken(tmp_path, source, **settings):
    """The rows of a source by split, and the manifest."""
    where = str(tmp_path / "data")
    found = ingest(Molecules(**settings), str(source), where, parallel=0, max_reject_fraction=0.9)
    names = [field["name"] for field in found["schema"]]
    loaded = {part: rows.load(where, found, part, names) for part in ("train", "val", "test")}
    return loaded, found


def every(loaded):
    return {alphabet.decode(row) for part in loaded.values() for row in part["codes"]}


def padded(lines, count=60):
    """With as many others as a data set needs."""
    return [*lines, *molecule_files.smiles(count, seed=9)]


# --- the alphabet -----------------------------------------------------------------------------


def test_real_molecules_come_back_from_their_codes():
    with NCI.open() as file:
        lines = [next(file).split()[0] for _ in range(400)]
    for text in lines:
        try:
            smiles = chemistry.smiles(chemistry.read(text))
            codes = alphabet.encode(smiles)
        except UserError:
            continue
        assert alphabet.decode([*codes, 0, 5]) == smiles
        assert len(codes) <= len(alphabet.tokens(smiles))


@pytest.mark.parametrize(
    "text", ["CCl", "CBr", "c1ccc(Cl)cc1Br", "CC(C)Cl", "BrCC#N", "C%12CCC%12"]
)
def test_a_piece_never_takes_the_first_half_of_an_atom(text):
    names = [alphabet.NAMES[code] for code in alphabet.encode(text)]
    assert "".join(names) == text
    assert [token for name in names for token in alphabet.tokens(name)] == alphabet.tokens(text)


def test_what_the_alphabet_lacks_is_named():
    with pytest.raises(UserError, match=r"\[Xe\] is not in the alphabet"):
        alphabet.encode("C[Xe]C")


# --- chemistry --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "smiles"),
    [
        ("[Na+].CC(=O)[O-]", "CC(=O)O"),  # the salt's acid
        ("CC[NH3+].[Cl-]", "CCN"),
        ("C[N+](C)(C)C.[Br-]", "C[N+](C)(C)C"),  # no proton could neutralise it
        ("[Fe+2].c1cc[cH-]c1.c1cc[cH-]c1", "c1cc[cH-]c1"),  # nor this: what it gave is unreadable
        ("CC(=O)[O-]", "CC(=O)[O-]"),  # by itself it stays as it is
        ("OC(=O)C", "CC(=O)O"),
        ("C1=CC=CC=C1", "c1ccccc1"),
        ("O.CCO", "CCO"),
    ],
)
def test_the_largest_fragment_is_kept_and_written_canonically(text, smiles):
    assert chemistry.smiles(chemistry.read(text)) == smiles


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("xyz", "not a SMILES"),
        ("C1CC", "not a SMILES"),
        ("C(C)(C)(C)(C)C", "not a SMILES"),
        ("C" * 1001, "1001 characters"),
        ("C" * 200, "200 heavy atoms"),
        ("[H][H]", "0 heavy atoms"),
    ],
)
def test_what_is_no_molecule_is_refused_with_its_reason(text, words):
    with pytest.raises(UserError, match=words):
        chemistry.read(text)


def test_properties_are_those_that_rdkit_computes():
    with NCI.open() as file:
        lines = [next(file).split()[0] for _ in range(300)]
    for text in lines:
        molecule = Chem.MolFromSmiles(text)
        if molecule is None:
            continue
        assert chemistry.properties(molecule)["qed"] == pytest.approx(QED.qed(molecule), abs=1e-9)
    found = chemistry.properties(chemistry.read(ASPIRIN))
    assert found["mw"] == pytest.approx(180.159, abs=0.01)
    assert found["tpsa"] == pytest.approx(63.6, abs=0.05)
    assert (found["hbd"], found["hba"], found["rings"]) == (1, 3, 1)
    assert found["logp"] == pytest.approx(1.3101, abs=1e-4)


def test_alerts_name_filter_and_atoms():
    found = chemistry.alerts(chemistry.read("CC=O"))
    assert {alert["filter"] for alert in found} >= {"brenk", "moses"}
    aldehyde = next(alert for alert in found if alert["name"] == "aldehyde")
    assert set(aldehyde["atoms"]) <= {0, 1, 2}
    assert chemistry.alerts(chemistry.read("CCO")) == []
    assert not chemistry.passes(chemistry.read("C[N+](C)(C)C"), ("moses",))  # charged


def test_similarity_is_tanimotos():
    one, other = (chemistry.fingerprint(chemistry.read(text)) for text in (ASPIRIN, "CCO"))
    bits, others = (set(np.flatnonzero(np.unpackbits(each))) for each in (one, other))
    expected = len(bits & others) / len(bits | others)
    found = chemistry.similarity(one, np.stack([one, other]))
    assert found.tolist() == pytest.approx([1.0, expected])


# --- sources ----------------------------------------------------------------------------------


def test_smiles_a_line_are_read_once_each_and_what_is_none_is_told(tmp_path):
    lines = padded(["OCC", "CCO ethanol", "# a remark", "nonsense", "C[Xe]C", "CC.[Na+].[Cl-]"])
    (tmp_path / "some.smi").write_text("\n".join(lines) + "\n")
    loaded, found = taken(tmp_path, tmp_path / "some.smi", split="random")
    assert {"CCO", "CC"} <= every(loaded)
    assert sum(len(part["logp"]) for part in loaded.values()) == len(every(loaded))
    assert sum(found["duplicates"]["within"].values()) == 1
    assert found["rejects"]["count"] == 2
    reasons = " ".join(found["rejects"]["reasons"])
    assert "nonsense" in reasons
    assert "[Xe]" in reasons


def test_a_tables_numbers_are_activities_and_may_be_missing(tmp_path):
    molecule_files.write(tmp_path / "some.csv", 120)
    loaded, found = taken(tmp_path, tmp_path / "some.csv", split="random")
    kinds = {field["name"]: field["kind"] for field in found["schema"]}
    assert kinds["nitrogen"] == "yes_no"
    assert kinds["carbons"] == "number"
    train = loaded["train"]
    assert set(np.unique(train["nitrogen"])) == {0.0, 1.0}
    assert 0 < np.isnan(train["carbons"]).sum() < len(train["carbons"])
    batch = data.encode(train, torch.arange(len(train["logp"])), Schema.from_json(found["schema"]))
    assert torch.equal(batch.known["carbons"], torch.from_numpy(~np.isnan(train["carbons"])))
    assert batch.known["nitrogen"].all()


def test_activities_may_be_named_and_renamed(tmp_path):
    (tmp_path / "esol.csv").write_text(
        "smiles,logp,other\n" + "".join(f"{text},-1.5,2\n" for text in padded([], 60))
    )
    loaded, found = taken(
        tmp_path, tmp_path / "esol.csv", split="random", activities=("solubility:logp",)
    )
    names = [field["name"] for field in found["schema"] if field["parts"] == ["target"]]
    assert names == ["solubility"]
    assert (loaded["train"]["solubility"] == -1.5).all()
    assert not (loaded["train"]["logp"] == -1.5).all()  # that is computed
    for wrong, words in ((("nothing",), "no column 'nothing'"), (("logp",), "computed property")):
        with pytest.raises(UserError, match=words):
            Molecules(activities=wrong).survey(str(tmp_path / "esol.csv"))


@pytest.mark.parametrize("ending", [".csv.gz", ".parquet", ".sdf", ".sdf.gz", ".smi.gz"])
def test_every_kind_of_file_gives_the_same_molecules(tmp_path, ending):
    texts = molecule_files.smiles(50, seed=3)
    path = tmp_path / f"some{ending}"
    if ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"SMILES": texts}), path)
    else:
        content = "SMILES\n" + "\n".join(texts) if "csv" in ending else "\n".join(texts)
        if "sdf" in ending:
            blocks = [Chem.MolToMolBlock(Chem.MolFromSmiles(text)) for text in texts]
            content = "".join(f"{block}>  <activity>\n1.5\n\n$$$$\n" for block in blocks)
        packed = content.encode()
        path.write_bytes(gzip.compress(packed) if ending.endswith(".gz") else packed)
    loaded, found = taken(tmp_path, path, split="random")
    assert every(loaded) == {chemistry.smiles(chemistry.read(text)) for text in texts}
    assert ("activity" in {field["name"] for field in found["schema"]}) == ("sdf" in ending)


def test_a_broken_block_of_an_sdf_is_set_aside(tmp_path):
    blocks = [Chem.MolToMolBlock(Chem.MolFromSmiles(text)) for text in padded([], 40)]
    whole = "".join(f"{block}$$$$\n" for block in blocks)
    (tmp_path / "some.sdf").write_text("broken\n\n\n  x\nM  END\n$$$$\n" + whole + blocks[0][:80])
    _, found = taken(tmp_path, tmp_path / "some.sdf", split="random")
    assert found["rejects"]["count"] == 2
    assert "RDKit can read" in " ".join(found["rejects"]["reasons"])


def test_files_named_train_and_test_keep_their_rows_and_a_few_train_become_validation(tmp_path):
    texts = molecule_files.smiles(300, seed=4)
    (tmp_path / "train.csv").write_text("SMILES\n" + "\n".join(texts[:250]))
    (tmp_path / "test.csv").write_text(
        "SMILES,SPLIT\n" + "\n".join(f"{t},test" for t in texts[240:])
    )
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).rename(folder / name)
    loaded, found = taken(tmp_path, folder)
    sizes = {part: len(part_rows["logp"]) for part, part_rows in loaded.items()}
    assert sizes["test"] == 60
    assert 10 <= sizes["val"] <= 45
    assert sizes["train"] + sizes["val"] == 240
    assert sum(found["duplicates"]["across"].values()) == 10


def test_properties_of_a_part_of_the_training_molecules_are_enough(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    lines = molecule_files.smiles(700)
    (source / "train.smi").write_text("\n".join(lines[:600]))
    (source / "test.smi").write_text("\n".join(lines[600:]))
    loaded, found = taken(tmp_path, source, computed=0.3)
    known = {part: np.isfinite(columns["logp"]) for part, columns in loaded.items()}
    assert known["val"].all() and known["test"].all()
    assert 0.2 < known["train"].mean() < 0.4
    assert (np.isfinite(loaded["train"]["qed"]) == known["train"]).all()  # all of them, or none
    task = Molecules(schema=Schema.from_json(found["schema"]), adversarial_steps=0, width=8)
    networks = task.networks()
    batch = task.encode(loaded["train"], torch.zeros(len(known["train"])))
    task.prepare(networks, iter([batch]))
    mean = np.nanmean(loaded["train"]["mw"])
    assert float(networks["generator"].mean[3]) == pytest.approx(float(mean), rel=1e-4)
    none = batch.take(torch.from_numpy(np.flatnonzero(~known["train"])))
    with pytest.raises(UserError, match="ingest with a larger computed"):
        task.prepare(networks, iter([none]))


def test_molecules_of_one_scaffold_stay_in_one_split(tmp_path):
    molecule_files.write(tmp_path / "some.csv", 500)
    loaded, _ = taken(tmp_path, tmp_path / "some.csv", activities=("none",))
    where: dict[str, set[str]] = {}
    for part, columns in loaded.items():
        for row in columns["codes"]:
            scaffold = chemistry.scaffold(chemistry.read(alphabet.decode(row)))
            if scaffold:
                where.setdefault(scaffold, set()).add(part)
    assert len(where) > 3
    assert all(len(parts) == 1 for parts in where.values())


def test_each_molecule_is_also_written_from_another_atom(tmp_path):
    molecule_files.write(tmp_path / "some.csv", 100)
    loaded, _ = taken(tmp_path, tmp_path / "some.csv", split="random", activities=("none",))
    pairs = [
        (alphabet.decode(one), alphabet.decode(other))
        for one, other in zip(loaded["train"]["codes"], loaded["train"]["rooted"], strict=True)
    ]
    assert sum(one != other for one, other in pairs) > len(pairs) / 3
    assert all(chemistry.smiles(chemistry.read(other)) == one for one, other in pairs)


def test_a_source_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("name,weight\nx,1\n")
    (tmp_path / "empty.smi").write_text("\n")
    for name, words in (
        ("a.csv", "no column called smiles"),
        ("empty.smi", "holds no molecules"),
        ("nothing.smi", "does not exist"),
        ("", "holds no molecules|has no column"),
    ):
        with pytest.raises(UserError, match=words):
            Molecules().survey(str(tmp_path / name))


def test_a_molecule_of_too_many_codes_is_set_aside(tmp_path):
    texts = [*padded([], 40), "[nH]1" + "[C@@H](C)[C@H](O)" * 20 + "1"]
    (tmp_path / "some.smi").write_text("\n".join(["CSCCSCCSCCSCCSCCSCCSCCSCCSCC", *texts[:-1]]))
    _, found = taken(tmp_path, tmp_path / "some.smi", split="random", length=12)
    assert found["rejects"]["count"] >= 1
    assert "raise length" in " ".join(found["rejects"]["reasons"])


def test_a_request_names_a_molecule_or_sends_its_file():
    schema = data.schema(80, {})
    by_name = data.parse({"smiles": "OCC"}, schema)
    by_file = data.parse({"file": b"OCC ethanol\n", "filename": "x.smi"}, schema)
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("OCC")).encode()
    by_block = data.parse({"file": block, "filename": "x.mol"}, schema)
    for record in (by_name, by_file, by_block):
        assert alphabet.decode(record["codes"]) == "CCO"
        assert math.isclose(record["mw"], 46.069, abs_tol=0.01)
    for item, words in (
        ({"smiles": 3}, "smiles is a SMILES"),
        ({}, "smiles is a SMILES"),
        ({"smiles": "xyz"}, "smiles: 'xyz' is not"),
        ({"file": b"\xff\xfe", "filename": "x.smi"}, "not text"),
        ({"file": b"", "filename": "x.smi"}, "x.smi: the SMILES is empty"),
        ({"smiles": "[Xe]"}, r"\[Xe\] is not in the alphabet"),
    ):
        with pytest.raises(UserError, match=words):
            data.parse(item, schema)
