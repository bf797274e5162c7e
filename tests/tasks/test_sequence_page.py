"""Sequences and structures on the page, in a browser.

A tiny model of DNA is trained, served and asked as it is. Of proteins it is the page alone that is
looked at: a stand-in answers with an ideal helix, and the model itself is tested elsewhere.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import gzip
import io
import json
import math
import os
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_ray import config, model, noise, registry, rows
from aigc_ray.adversary import Adversary
from aigc_ray.ingest import ingest
from aigc_ray.schema import Schema
from aigc_ray.tasks.dna.task import Dna
from aigc_ray.tasks.proteins import structures
from tests import service
from tests.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

LENGTH, MOTIF, PLACE = 60, "TATAAA", 20
STEPS, BATCH = 40, 32


def sequences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sequences with their classes; those of the second hold the motif at its place."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        text = "".join(random.choice(list("ACGT"), LENGTH))
        if number % 2:
            text = text[:PLACE] + MOTIF + text[PLACE + len(MOTIF) :]
        made.append((text, ("other", "promoter")[number % 2]))
    return made


@pytest.fixture(scope="module")
def dna(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with a small model, trained and promoted as a user does it."""
    folder = tmp_path_factory.mktemp("dna")
    lines = [f"{text},{name}" for text, name in sequences(600)]
    (folder / "some.csv").write_text("\n".join(["sequence,label", *lines]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(folder / "home"))
        made = Dna(steps=STEPS, width=16, recogniser_width=16, precision="fp32")
        manifest = ingest(made, str(folder / "some.csv"), str(folder / "data"), parallel=0)
        task = dataclasses.replace(made, schema=Schema.from_json(manifest["schema"]))
        train(task, str(folder / "data"), manifest, folder / "model")
        registry.promote(f"dna:{registry.register('dna', folder / 'model')}", "production")
        with service.listening("dna") as address:
            yield address


def train(task: Dna, data: str, manifest: dict[str, Any], folder: Path) -> None:
    """A short training without its evaluation; the model goes into a folder."""
    names = [field.name for field in task.schema.fields]
    columns = rows.load(data, manifest, "train", names)
    count = len(columns["label"])
    every = task.encode(columns, noise.keys(0, torch.arange(count)))
    adversary = Adversary(task, seed=0)
    adversary.prepare(iter([every]))
    for step in range(adversary.steps):
        taken = every.take((torch.arange(BATCH) + BATCH * step) % count)
        adversary.step(taken, taken)
    info = {"task": "dna", "configuration": config.to_json(task), "schema": task.schema.to_json()}
    model.write(folder, [adversary.averaged()], info)


class Helices:
    """Answers as a model of proteins gives them, of an ideal alpha helix and what follows it."""

    model = {"task": "proteins", "version": 1, "sha256": "0" * 64}  # noqa: RUF012
    asked: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def close(self) -> None:
        pass

    async def describe(self) -> dict[str, Any]:
        classes = ["alpha", "beta", "alpha and beta", "little"]
        field = {"name": "map", "kind": "image", "parts": ["generated", "input"]}
        return {
            **self.model, "schema": [field], "classes": classes, "synthetic": False,
            "calibrated": True,
        }  # fmt: skip

    async def predict_list(self, items: list[Any]) -> dict[str, Any]:
        Helices.asked = dict(items[0])
        if b"ATOM" not in items[0]["file"]:
            detail = f"{items[0]['filename']}: there is no ATOM in it"
            return {"model": self.model, "answers": [{"error": detail, "field": "file"}]}
        explanation = {"method": "hiding blocks of residue pairs", "of": "alpha", "image": png()}
        answer = window(1) | {"A:65-128": window(65)}
        if items[0].get("explain"):
            answer["explanation"] = explanation
        return {"model": self.model, "answers": [answer]}

    async def generate(self, request: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        if request["n"] > 3:
            yield {"error": f"n is at most 3 today; got {request['n']}", "field": "n"}
            return
        yield {"model": self.model}
        for number in range(request["n"]):
            atoms = backbone()
            lines = [
                f"ATOM  {at + 1:5d}  CA  ALA A{at + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
                for at, (x, y, z) in enumerate(atoms)
            ]
            yield {
                "seed": request["seed"], "number": number, "class": request.get("class", "alpha"),
                "coordinates": atoms, "pdb": "\n".join(["HEADER    MADE", *lines, "TER", "END\n"]),
                "secondary_structure": FOLDS, "plausibility": 0.97, "probability": 0.88,
                "nearest": {"rmsd": 3.21}, "map": png(),
                "checks": {"bonds": 1.0, "clashes": 0, "right_handed": 1.0,
                           "ramachandran_allowed": 0.984},
            }  # fmt: skip


FOLDS = "C" + "H" * 30 + "C" * 6 + "E" * 10 + "C" * 5 + "E" * 10 + "CC"


def backbone() -> list[list[float]]:
    """64 CA atoms: a helix of 3.6 residues a turn that rises 1.5 angstrom each, then two strands,
    there and back, 3.4 angstrom a residue."""
    atoms = [
        [2.3 * math.cos(place * math.radians(100)), 2.3 * math.sin(place * math.radians(100)),
         1.5 * place - 24] for place in range(34)
    ]  # fmt: skip
    for place in range(30):
        along = 3.4 * (place if place < 14 else 29 - place) - 22
        atoms.append([9.0 + 0.9 * (place % 2), 0.0 if place < 14 else 4.8, -along])
    return [[round(value, 3) for value in atom] for atom in atoms]


def window(start: int) -> dict[str, Any]:
    folds = FOLDS if start == 1 else "C" * 10 + "E" * 8 + "C" * 46
    named = {"alpha": 0.9, "beta": 0.05, "alpha and beta": 0.03, "little": 0.02}
    return {
        "chain": "A", "residues": [str(start + place) for place in range(64)],
        "sequence": "MKTAYIAKQRQISFVK" * 4, "label": "alpha" if start == 1 else "little",
        "probabilities": named, "secondary_structure": folds,
        "secondary_confidence": [0.9] * 64, "plausibility": 0.97, "coordinates": backbone(),
        "abstained": False, "set": ["alpha"], "outlier": 0.4, "warnings": [],
    }  # fmt: skip


def png() -> str:
    atoms = np.array(backbone())
    far = np.linalg.norm(atoms[:, None] - atoms[None], axis=2)
    file = io.BytesIO()
    Image.fromarray((np.clip(far / 25, 0, 1) * 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def proteins() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "TaskServer", Helices)
        with service.listening("proteins") as address:
            patch.undo()
            yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    one = Browser()
    yield one
    one.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return Path(os.environ.get("AIGC_SCREENSHOTS") or tmp_path)


def visit(browser: Browser, url: str, card: str, width: int = 1200) -> None:
    """The page with only this card and that of generation, remembering the files it offers."""
    browser.errors.clear()
    browser.go(url, width)
    browser.wait(f"!document.querySelector('#{card}').hidden")
    cards = "[...document.querySelectorAll('main > .card')].filter((c) => !c.hidden).length"
    assert browser.run(cards) == 2
    browser.run(
        "window.files = []; const made = URL.createObjectURL;"
        "URL.createObjectURL = (file) => { window.files.push(file); return made(file); }; 0"
    )


def submit(browser: Browser, form: str) -> None:
    browser.run(f"document.querySelector('#{form} button[type=submit]').click()")


def drop(browser: Browser, name: str, content: bytes) -> None:
    """A file falls onto the page."""
    data = base64.b64encode(content).decode()
    browser.run(
        f"(() => {{ const bytes = Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0));"
        f"const transfer = new DataTransfer(); transfer.items.add(new File([bytes], '{name}'));"
        "document.body.dispatchEvent(new DragEvent('drop', "
        "{bubbles: true, cancelable: true, dataTransfer: transfer})); })()"
    )


def fits(browser: Browser) -> None:
    room = "document.documentElement.scrollWidth - window.innerWidth"
    assert browser.run(room) <= 0, "the page is wider than the window"
    assert browser.errors == []


def scheme(browser: Browser, dark: bool, still: bool = False) -> None:
    wishes = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
    ]
    browser.call("Emulation.setEmulatedMedia", features=wishes)


def test_each_task_has_its_own_card_and_form(browser: Browser, proteins: str) -> None:
    """Of a page that serves them all, what is to be seen for the one that is chosen."""
    visit(browser, proteins, "protein-card")
    image = {"name": "image", "kind": "image", "parts": ["input"], "shape": [1, 28, 28]}
    letters = {"name": "sequence", "kind": "codes", "parts": ["input"], "shape": [LENGTH]}
    fields = {"diagnosis": [image], "dna": [letters], "proteins": [image]}
    every = {"classes": [], "version": 1, "sha256": "0" * 64}
    models = [
        {"task": task, "schema": fields.get(task, []), **every}
        for task in ("diagnosis", "prognosis", "molecules", "dna", "proteins")
    ]
    browser.run(
        f"served = {json.dumps(models)};"
        "at('task').replaceChildren(...served.map((one) => element('option', one.task))); 0"
    )
    seen = "[...document.querySelectorAll('main .card, .wishes')].filter((c) => !c.hidden)"
    own = {
        "diagnosis": {"image-card"}, "prognosis": {"patient-card"}, "dna": {"sequence-card",
        "sequence-wishes"}, "molecules": {"molecule-card", "wishes"}, "proteins": {"protein-card"},
    }  # fmt: skip
    for task, parts in own.items():
        browser.run(
            f"at('task').value = '{task}'; at('task').dispatchEvent(new Event('change')); 0"
        )
        assert set(browser.run(f"{seen}.map((c) => c.id)")) - {""} == parts, task
    assert browser.errors == []


# --- sequences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1200, 400])
def test_a_typed_sequence_is_recognised_with_its_logo(
    browser: Browser, dna: str, pictures: Path, width: int
) -> None:
    visit(browser, dna, "sequence-card", width)
    assert f"{LENGTH} letters" in browser.text("#sequence-length")
    browser.type("#sequence", f">p1 from somewhere\n{sequences(2)[1][0].lower()}\n")
    submit(browser, "sequence-form")
    browser.wait("document.querySelector('#sequence-told .model')")
    told = browser.text("#sequence-told")
    assert told.startswith("p1")
    assert "promoter" in told
    assert "dna, version 1" in told
    browser.wait("document.querySelector('#sequence-told .heat img')?.naturalWidth > 300")
    (most,) = re.findall("Most speaks for promoter at letters (.*)[.]", told)
    planted = range(PLACE + 1, PLACE + len(MOTIF) + 1)
    assert sum(int(place) in planted for place in most.split(", ")) >= 4
    browser.picture(pictures / f"sequence-{width}.png")
    fits(browser)


def test_a_dropped_file_of_three_records_becomes_a_table_of_three_answers(
    browser: Browser, dna: str, pictures: Path
) -> None:
    visit(browser, dna, "sequence-card")
    made = sequences(3, seed=5)
    fasta = "".join(f">one{n} of three\n{text}\n" for n, (text, _) in enumerate(made))
    names = "[...document.querySelectorAll('#sequence-told tr')].map((r) => r.cells[0].innerText)"
    for name, content in (
        ("three.fa", fasta.encode()),
        ("three.fasta.gz", gzip.compress(fasta.encode())),
        ("three.csv", "\n".join(["sequence,name", *(f"{t},one{n}" for n, (t, _) in
                                                    enumerate(made))]).encode()),
    ):  # fmt: skip
        browser.run("document.querySelector('#sequence-told').replaceChildren()")
        drop(browser, name, content)
        browser.wait("document.querySelector('#sequence-told table')")
        assert browser.run(names) == ["name", "one0", "one1", "one2"], name
    browser.picture(pictures / "sequence-table.png")
    (table,) = csv_of(browser, -1)[:1]
    assert set(table) == {"name", "label", "reason", "other", "promoter"}
    fits(browser)


def csv_of(browser: Browser, file: int) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(browser.run(f"window.files.at({file}).text()"))))


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_a_fixed_template_is_kept_and_motifs_are_underlined(
    browser: Browser, dna: str, pictures: Path, width: int, dark: bool
) -> None:
    scheme(browser, dark)
    visit(browser, dna, "sequence-card", width)
    assert browser.run("document.querySelector('#n').max") == "1000"
    start, end = "ACGTACGTAC", "GGGGG"
    fixed = start + "N" * (LENGTH - len(start) - len(end)) + end
    for selector, text in (
        ("#fixed", f"{fixed[:30]}\n{fixed[30:]}"), ("#motifs", f"TATAWA@{PLACE + 1}, CAAT"),
        ("#forbidden", "EcoRI, GGTCTC"), ("#gc-from", "30"), ("#gc-to", "70"), ("#n", "6"),
    ):  # fmt: skip
        browser.type(selector, text)
    browser.run("document.querySelector('#class').value = 'promoter'; 0")
    submit(browser, "generate")
    browser.wait("document.querySelectorAll('.sequence').length === 6")
    assert "6 sequences by dna" in browser.text("#made")
    shown = browser.run("[...document.querySelectorAll('.sequence')].map((s) => s.textContent)")
    underlined = browser.run(
        "[...document.querySelectorAll('.sequence')].map((s) => "
        "[...s.querySelectorAll('.motif')].map((m) => m.textContent).join(''))"
    )
    for text, marked in zip(shown, underlined, strict=True):
        assert text.startswith(start)
        assert text.endswith(end)
        assert re.fullmatch("TATA[AT]A", text[PLACE : PLACE + 6])
        assert "CAAT" in text
        assert not re.search("GAATTC|GGTCTC|GAGACC", text)
        assert text[PLACE : PLACE + 6] in marked
        assert "CAAT" in marked
    table = csv_of(browser, -1)
    assert [row["sequence"] for row in table] == shown
    assert all(f"TATAWA@{PLACE + 1}; CAAT@" in row["motifs"] for row in table)
    assert all(0.3 <= float(row["gc"]) <= 0.7 for row in table)
    fasta = browser.run("window.files.at(-2).text()")
    records = [record.partition("\n")[2].replace("\n", "") for record in fasta.split(">")[1:]]
    assert records == shown
    browser.picture(pictures / f"sequences-{width}.png")
    fits(browser)


def test_letters_can_be_read_on_light_and_on_dark(browser: Browser, dna: str) -> None:
    colours = (
        "['a', 'c', 'g', 't'].map((base) => { const one = document.createElement('span');"
        "one.className = `base-${base}`; document.querySelector('#rows').append(one);"
        "return getComputedStyle(one).color; })"
    )
    paper = "getComputedStyle(document.querySelector('#sequence-card')).backgroundColor"
    for dark in (False, True):
        scheme(browser, dark)
        visit(browser, dna, "sequence-card")
        behind = _brightness(browser.run(paper))
        for colour in browser.run(colours):
            low, high = sorted((_brightness(colour), behind))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (colour, dark)
    scheme(browser, dark=False)


def _brightness(colour: str) -> float:
    """Relative luminance (WCAG 2) of rgb(…)."""
    linear = [
        value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    ]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_what_the_service_refuses_is_told_in_its_own_words(browser: Browser, dna: str) -> None:
    visit(browser, dna, "sequence-card")
    browser.type("#sequence", "ACGUACGU")
    submit(browser, "sequence-form")
    browser.wait("document.querySelector('#sequence-told .error')")
    assert "sequence has 8 letters; 60 are read" in browser.text("#sequence-told .error")
    for selector, text, words in (
        ("#fixed", "ACGT", "fixed has 60 letters, N where any may stand; got 4"),
        ("#forbidden", "Eco", "forbidden holds letters of DNA"),
        ("#motifs", "TATAXA", "motifs holds letters of DNA"),
        ("#motifs", "TATA@58", "TATA begins at a letter from 1 to 57"),
    ):
        for other in ("#fixed", "#forbidden", "#motifs"):
            browser.run(f"document.querySelector('{other}').value = ''; 0")
        browser.run("document.querySelector('#made').replaceChildren()")
        browser.type(selector, text)
        submit(browser, "generate")
        browser.wait("document.querySelector('#made .error')")
        assert words in browser.text("#made .error")


def test_what_cannot_be_made_is_told_as_missing(browser: Browser, dna: str) -> None:
    visit(browser, dna, "sequence-card")
    browser.type("#gc-from", "95")
    submit(browser, "generate")
    browser.wait("document.querySelector('#made .model')")
    told = browser.text("#made")
    assert "0 sequences by dna" in told
    assert "8 missing" in told
    assert "missed the range of gc" in told


# --- structures ---------------------------------------------------------------------------------

PIXELS = "document.querySelector('.backbone canvas').toDataURL()"


def test_a_dropped_structure_is_shown_window_by_window(
    browser: Browser, proteins: str, pictures: Path
) -> None:
    scheme(browser, dark=False, still=True)
    for width in (1200, 400):
        visit(browser, proteins, "protein-card", width)
        browser.type("#chain", "A")
        drop(browser, "1abc.pdb", b"ATOM      1  CA\n")
        browser.wait("document.querySelectorAll('#protein-told canvas').length === 2")
        assert Helices.asked["filename"] == "1abc.pdb"
        assert (Helices.asked["chain"], Helices.asked["explain"]) == ("A", True)
        told = browser.text("#protein-told")
        for words in ("alpha", "97.0 %", "helix 2 to 31, strand 38 to 47, strand 53 to 62",
                      "Of the structures held back", "hiding blocks of residue pairs"):  # fmt: skip
            assert words in told
        cells = "[...document.querySelectorAll('.strip [role=img] .fold')]"
        assert browser.run(f"{cells}.map((c) => c.innerText).join('')") == "MKTAYIAKQRQISFVK" * 4
        assert browser.run(f"{cells}.filter((c) => c.classList.contains('helix')).length") == 30
        browser.picture(pictures / f"protein-{width}.png")
        fits(browser)
    browser.run(
        "const select = document.querySelector('#protein-told select');"
        "select.value = 'A:65-128'; select.dispatchEvent(new Event('change')); 0"
    )
    assert "strand 75 to 82" in browser.text("#protein-told")
    assert "little" in browser.text("#protein-told .label")


def test_a_structure_is_turned_and_never_mirrored(browser: Browser, proteins: str) -> None:
    """What is right-handed stays so until it is drawn: the volume that four atoms span."""
    visit(browser, proteins, "protein-card")
    atoms = backbone()
    for change in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):  # none of them mirrors
        turned = browser.run(f"upright({[[atom[axis] for axis in change] for atom in atoms]})")
        for four in range(0, 30, 5):
            volumes = [
                np.linalg.det(np.diff(np.array(one[four : four + 4]), axis=0))
                for one in (atoms, turned)
            ]
            assert volumes[0] == pytest.approx(volumes[1], rel=1e-3)
        assert np.ptp(turned, axis=0).argmax() == 1  # the longest way is upright


def test_another_chain_is_asked_of_the_same_file(browser: Browser, proteins: str) -> None:
    visit(browser, proteins, "protein-card")
    drop(browser, "1abc.cif", b"ATOM 1 CA\n")
    browser.wait("document.querySelector('#protein-told canvas')")
    assert "chain" not in Helices.asked
    browser.type("#chain", "B")
    browser.press("Enter", 13)
    browser.wait("document.querySelector('#protein-told canvas')")
    assert (Helices.asked["chain"], Helices.asked["filename"]) == ("B", "1abc.cif")


def test_the_backbone_turns_and_can_be_stopped(
    browser: Browser, proteins: str, pictures: Path
) -> None:
    scheme(browser, dark=True)
    visit(browser, proteins, "protein-card")
    assert browser.run("document.querySelector('#n').max") == "64"
    browser.type("#n", "3")
    submit(browser, "generate")
    browser.wait("document.querySelector('.backbone canvas')")
    first = browser.run(PIXELS)
    browser.wait(f"{PIXELS} !== {first!r}")
    button = "document.querySelector('.backbone button')"
    assert browser.run(f"{button}.innerText") == "Hold still"
    browser.run(f"{button}.click()")
    assert browser.run(f"{button}.innerText") == "Let it turn"
    frame = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    browser.run(f"{frame}.then(() => 0)")
    held = browser.run(PIXELS)
    browser.run("new Promise((done) => setTimeout(done, 300)).then(() => 0)")
    assert browser.run(PIXELS) == held
    browser.run("document.querySelector('.backbone canvas').focus()")
    for key, code in (("ArrowLeft", 37), ("ArrowUp", 38)):
        browser.press(key, code)
        browser.wait(f"{PIXELS} !== {held!r}")
        held = browser.run(PIXELS)
    box = browser.run(
        "(() => { const r = document.querySelector('.backbone canvas').getBoundingClientRect();"
        "window.scrollTo(0, 0); return [r.left + r.width / 2, r.top + r.height / 2]; })()"
    )
    for kind, shift in (("mousePressed", 0), ("mouseMoved", 40), ("mouseReleased", 40)):
        browser.call(
            "Input.dispatchMouseEvent", type=kind, x=box[0] + shift, y=box[1], button="left",
            buttons=1, clickCount=1,
        )  # fmt: skip
    browser.wait(f"{PIXELS} !== {held!r}")
    assert browser.run(f"{button}.innerText") == "Let it turn"
    browser.picture(pictures / "proteins-dark.png")
    fits(browser)


def test_it_stands_still_for_who_asked_for_less_motion(browser: Browser, proteins: str) -> None:
    scheme(browser, dark=False, still=True)
    visit(browser, proteins, "protein-card")
    submit(browser, "generate")
    browser.wait("document.querySelector('#made .error')")
    assert "n is at most 3 today; got 8" in browser.text("#made .error")
    browser.type("#n", "1")
    submit(browser, "generate")
    browser.wait("document.querySelector('.backbone button')?.innerText === 'Let it turn'")
    browser.run("new Promise((done) => setTimeout(done, 100)).then(() => 0)")
    held = browser.run(PIXELS)
    browser.run("new Promise((done) => setTimeout(done, 300)).then(() => 0)")
    assert browser.run(PIXELS) == held
    fits_nothing_but_refusals(browser)


def fits_nothing_but_refusals(browser: Browser) -> None:
    """A refused request stands in the console; nothing else does."""
    assert all("422" in error for error in browser.errors)


def test_generated_structures_come_with_checks_and_files(
    browser: Browser, proteins: str, pictures: Path
) -> None:
    scheme(browser, dark=False, still=True)
    visit(browser, proteins, "protein-card")
    browser.run("document.querySelector('#class').value = 'beta'; 0")
    browser.type("#n", "3")
    browser.type("#seed", "7")
    submit(browser, "generate")
    browser.wait("document.querySelectorAll('#gallery button').length === 3")
    browser.run("document.querySelectorAll('#gallery button')[1].click()")
    assert browser.run(
        "[...document.querySelectorAll('#gallery button')].map((b) => b.ariaPressed)"
    ) == ["false", "true", "false"]
    told = browser.text("#rows")
    for words in ("beta, seed 7, no. 1", "88.0 %", "3.21 Å away", "98.4 %", "helix 2 to 31"):
        assert words in told
    names = browser.run("[...document.querySelectorAll('#rows a')].map((a) => a.download)")
    assert names == ["seed7_number1.pdb", "structures.pdb"]
    sizes = "window.files.map((file) => file.text())"
    files = browser.run(f"Promise.all({sizes})")
    every = next(text for text in files if "\nMODEL" in text)
    assert structures.theoretical(every.encode())
    assert re.findall(r"^MODEL +(\d+)$", every, re.MULTILINE) == ["1", "2", "3"]
    assert every.count("ENDMDL") == 3
    assert every.count("\nATOM  ") == 3 * 64
    assert "HEADER" not in every
    assert every.endswith("ENDMDL\nEND\n")
    assert sum(text.startswith("HEADER") for text in files) == 2  # the first, and the one chosen
    browser.picture(pictures / "proteins.png")
    fits(browser)


def test_a_file_that_is_no_structure_is_refused_in_the_services_words(
    browser: Browser, proteins: str
) -> None:
    visit(browser, proteins, "protein-card")
    drop(browser, "notes.pdb", b"nothing\n")
    browser.wait("document.querySelector('#protein-told .error')")
    assert "notes.pdb: there is no ATOM in it" in browser.text("#protein-told .error")
