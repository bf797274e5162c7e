"""Molecules as their users meet them: trained, served over HTTP, on the page, and by a job."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rdkit import Chem

from aigc_ray import cli, registry
from aigc_ray.errors import UserError
from aigc_ray.generate import generate
from aigc_ray.ingest import ingest
from aigc_ray.predict import predict
from aigc_ray.tasks.molecules import chemistry
from aigc_ray.tasks.molecules.task import Molecules
from aigc_ray.train import train
from tests import molecule_files
from tests.browser import CHROMIUM, Browser
from tests.service import listening, problem

SETTINGS = {
    "num_workers": 0, "batch_size": 32, "steps": 400, "adversarial_steps": 20, "width": 96,
    "critic_width": 32, "references": 60, "generator_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A registry with a small model, trained and promoted as a user does it."""
    folder = tmp_path_factory.mktemp("home")
    molecule_files.write(folder / "some.csv", 700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(folder / "home"))
        task = Molecules(split="random", activities=("none",))
        ingest(task, str(folder / "some.csv"), str(folder / "data"), parallel=0)
        summary = train("molecules", str(folder / "data"), SETTINGS)
        registry.promote(summary["model"], "production")
        yield folder


@pytest.fixture(scope="module")
def url(home):
    with listening("molecules") as address:
        yield address


def asked(url: str, path: str, **more):
    import httpx

    return httpx.post(f"{url}/v1/molecules/{path}", timeout=60, **more)


def test_a_training_tells_what_the_adversary_added(home):
    shown = registry.show("molecules@production")
    generation, card = shown["model"]["generation"], shown["card"]
    assert generation["valid"] > 0.5
    for name in ("valid", "filters", "scaffolds", "kid_ratio"):
        assert name in generation
        assert f"{name}_without_adversary" in generation
    assert generation["valid_real"] == 1
    assert "valid without adversary" in card
    assert 0 < shown["model"]["metrics"]["test"]["nats"] < 30


def test_molecules_are_described_in_their_order(url):
    items = [{"smiles": "OCC"}, {"smiles": "CC=O", "svg": True}]
    first, second = asked(url, "predict", json={"items": items}).json()["items"]
    assert first["smiles"] == "CCO"
    assert first["inchi_key"] == "LFQSCWFLJHTTHZ-UHFFFAOYSA-N"
    assert first["properties"]["mw"] == pytest.approx(46.069, abs=1e-3)
    assert first["alerts"] == []
    assert "svg" not in first
    assert {alert["name"] for alert in second["alerts"]} >= {"aldehyde"}
    assert "<svg" in second["svg"]


def test_the_rows_of_an_uploaded_table_are_molecules(url):
    table = b"name,SMILES\nethanol,OCC\nwater,C\n"
    answer = asked(url, "predict", files={"file": ("some.csv", table, "text/csv")}).json()
    assert [one["smiles"] for one in answer["items"]] == ["CCO", "C"]
    upload = {"file": ("one.smi", b"OCC ethanol\n", "chemical/x-daylight-smiles")}
    assert asked(url, "predict", files=upload).json()["items"][0]["smiles"] == "CCO"


def test_as_many_molecules_as_asked_for_come_with_their_evidence(url):
    body = {"n": 12, "seed": 3, "targets": {"mw": [80, 160]}, "svg": True}
    answer = asked(url, "generate", json=body).json()
    assert answer["shortfall"] == []
    assert len({item["smiles"] for item in answer["items"]}) == 12
    for item in answer["items"]:
        assert 80 <= item["properties"]["mw"] <= 160
        assert item["in_training"] is False
        assert {alert["filter"] for alert in item["alerts"]} <= {"moses"}
        assert 0 < item["nearest"]["similarity"] <= 1
        assert "<svg" in item["svg"]
    assert asked(url, "generate", json=body).json()["items"] == answer["items"]


def test_molecules_are_streamed_as_they_are_found(url):
    import httpx

    began = time.monotonic()
    first = None
    lines = []
    headers = {"Accept": "application/x-ndjson"}
    body = {"n": 200, "filters": [], "novel": False}
    with httpx.stream("POST", f"{url}/v1/molecules/generate", json=body, headers=headers) as answer:
        for line in answer.iter_lines():
            first = first or time.monotonic() - began
            lines.append(json.loads(line))
    assert len(lines) == 200
    assert first < (time.monotonic() - began) / 2
    assert all(line["model"]["task"] == "molecules" for line in lines)


@pytest.mark.parametrize(
    ("path", "body", "field", "words"),
    [
        ("predict", {"items": [{"smiles": "xyz"}]}, "smiles", "not a SMILES"),
        ("predict", {"items": [{"smiles": ""}]}, "smiles", "empty"),
        ("predict", {"items": [{"smiles": "C[Xe]C"}]}, "smiles", "not in the alphabet"),
        ("generate", {"scaffold": "c1ccccc1"}, "scaffold", "attachment point"),
        ("generate", {"must_have": ["(("]}, "must_have", "SMARTS"),
        ("generate", {"n": 0}, "n", "whole number"),
        ("generate", {"n": 10**7}, "n", "aigc-ray generate"),
        ("generate", {"score": "len"}, "score", "Python function"),
        ("generate", {"targets": {"colour": 1}}, "targets", "got colour"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_document(url, path, body, field, words):
    refused = problem(asked(url, path, json=body), 422)
    assert refused["field"] == field
    assert words in refused["detail"]


def test_a_contradiction_over_http_tells_what_is_missing(url):
    body = {"n": 2, "targets": {"mw": [300, 310], "rings": 0, "hba": 9, "logp": [7, 8]}}
    answer = asked(url, "generate", json=body).json()
    assert answer["items"] == []
    assert answer["shortfall"][0]["missing"] == 2
    assert "missed the target" in answer["shortfall"][0]["reason"]


# --- jobs ---------------------------------------------------------------------------------------


def test_a_job_writes_tables_and_sdf(home, tmp_path):
    request = {"filters": [], "novel": False}
    for ending in ("csv", "parquet", "sdf"):
        out = str(tmp_path / f"made.{ending}")
        found = generate("molecules@production", 30, out, 1, request)
        assert found["n"] == 30
        assert found["shortfall"] == []
    table = pq.read_table(tmp_path / "made.parquet").to_pylist()
    with (tmp_path / "made.csv").open() as file:
        rows = list(csv.DictReader(file))
    blocks = [one for one in Chem.SDMolSupplier(str(tmp_path / "made.sdf")) if one is not None]
    wanted = [row["smiles"] for row in table]
    assert len(set(wanted)) == 30
    assert [row["smiles"] for row in rows] == wanted
    assert [chemistry.smiles(one) for one in blocks] == wanted
    assert float(blocks[0].GetProp("properties.mw")) == table[0]["properties.mw"]
    assert float(rows[0]["properties.qed"]) == table[0]["properties.qed"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_large_job_is_made_in_chunks_without_a_double(home, tmp_path, monkeypatch):
    monkeypatch.setattr(Molecules, "chunk", 60)
    request = {"filters": [], "novel": False, "evidence": False}
    import ray

    # In this process, so that a job of seconds needs no Ray.
    class Now:
        def __init__(self, function):
            self.function = function

        def remote(self, *arguments):
            return self.function(*arguments)

    monkeypatch.setattr(ray, "remote", Now)
    monkeypatch.setattr(ray, "get", lambda made: made)
    monkeypatch.setattr("aigc_ray.generate.session", lambda: __import__("contextlib").nullcontext())
    found = generate("molecules@production", 200, str(tmp_path / "many.parquet"), 0, request)
    rows = pq.read_table(tmp_path / "many.parquet").to_pylist()
    assert found["n"] == len(rows) == 200
    assert len({row["smiles"] for row in rows}) == 200
    assert len({row["seed"] for row in rows}) > 3
    # What cannot go on says so, and keeps what there is.
    narrow = request | {"must_have": ["c1ccccc1Cl"], "mw": "100:140"}
    short = generate("molecules@production", 500, str(tmp_path / "few.parquet"), 0, narrow)
    assert 0 < short["n"] < 500
    assert short["shortfall"][0]["missing"] == 500 - short["n"]
    assert "nothing new" in short["shortfall"][0]["reason"]


def test_a_job_that_fails_leaves_no_half_file(home, tmp_path, monkeypatch):
    def broken(self, molecule):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("aigc_ray.generate._File._rows", broken)
    with pytest.raises(RuntimeError):
        generate("molecules@production", 3, str(tmp_path / "x.csv"), 0, {"filters": []})
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_molecules_is_answered_row_by_row(home, tmp_path):
    (tmp_path / "some.csv").write_text("name,smiles\na,CCO\nb,xyz\nc,c1ccccc1\n")
    out = str(tmp_path / "answers.jsonl")
    found = predict("molecules@production", str(tmp_path / "some.csv"), out)
    assert (found["answered"], found["failed"]) == (2, 1)
    rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert [row.get("smiles") for row in rows] == ["CCO", None, "c1ccccc1"]
    assert "'xyz' is not a SMILES" in rows[1]["error"]


def test_the_command_line_takes_wishes_as_words(home, tmp_path, capsys):
    out = str(tmp_path / "made.csv")
    words = ["generate", "molecules@production", "--n", "5", "--out", out]
    assert cli.main([*words, "mw=90:150", "filters=none", "scaffold=[*]c1ccccc1"]) == 0
    with (tmp_path / "made.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert all("c1ccccc1" in row["smiles"] for row in rows)
    assert cli.main([*words, "scaffold=c1ccccc1"]) == 2
    assert "scaffold needs an attachment point" in capsys.readouterr().err


def test_a_model_of_molecules_asked_from_python(home):
    import aigc_ray

    model = aigc_ray.load("molecules@production")
    (answer,) = model.predict([{"smiles": "OCC"}])
    assert answer["smiles"] == "CCO"
    made = model.generate(n=3, filters=[], score=lambda text: -len(text), rounds=2)
    assert len(made) == 3
    with pytest.raises(UserError, match="score raised"):
        model.generate(n=1, score=lambda text: [][0])


# --- the page -----------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_describes_a_molecule_and_generates_a_gallery(url, tmp_path):
    pictures = Path(os.environ.get("AIGC_SCREENSHOTS") or tmp_path)
    browser = Browser()
    try:
        for width, name in ((1200, "wide"), (400, "narrow")):
            browser.errors.clear()
            browser.go(url, width)
            browser.wait("!document.querySelector('#molecule-card').hidden")
            assert browser.run("document.querySelector('#image-card').hidden")
            assert browser.run("document.querySelector('#patient-card').hidden")
            browser.type("#smiles", "OC(=O)c1ccccc1OC(C)=O")
            browser.press("Enter", 13)
            browser.wait("document.querySelector('#molecule-facts img')?.naturalWidth")
            told = browser.text("#molecule-facts")
            assert "CC(=O)Oc1ccccc1C(=O)O" in told
            assert "180" in told
            assert "molecules, version 1" in told
            browser.run(
                "window.files = []; const made = URL.createObjectURL;"
                "URL.createObjectURL = (file) => { window.files.push(file); return made(file); }; 0"
            )
            browser.type("[data-target=mw]", "90:160")
            browser.type("#scaffold", "[*]c1ccccc1")
            browser.type("#n", "6")
            browser.press("Enter", 13)
            browser.wait("document.querySelectorAll('#gallery li').length === 6")
            browser.wait(
                "[...document.querySelectorAll('#gallery img')].every((i) => i.naturalWidth)"
            )
            assert "6 molecules by molecules" in browser.text("#made")
            browser.run("document.querySelector('#gallery summary').click()")
            assert "nearest in training" in browser.text("#gallery")
            links = browser.run("[...document.querySelectorAll('#rows a')].map((a) => a.download)")
            assert links == ["molecules.csv", "molecules.sdf"]
            table, sdf = (browser.run(f"window.files.at({n}).text()") for n in (-2, -1))
            assert len(table.strip().splitlines()) == 7
            (tmp_path / "from_page.sdf").write_text(sdf)
            supplied = [
                one
                for one in Chem.SDMolSupplier(str(tmp_path / "from_page.sdf"))
                if one is not None
            ]
            assert len(supplied) == 6
            assert supplied[0].GetProp("smiles") == chemistry.smiles(supplied[0])
            room = "document.documentElement.scrollWidth - window.innerWidth"
            assert browser.run(room) <= 0, "the page is wider than the window"
            browser.picture(pictures / f"molecules-{name}.png")
            assert browser.errors == []
        browser.type("#scaffold", "c1ccccc1")
        browser.press("Enter", 13)
        browser.wait("document.querySelector('#made .error')")
        assert "attachment point" in browser.text("#made .error")
    finally:
        browser.close()
