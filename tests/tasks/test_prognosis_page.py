"""Prognosis as its clients meet it: over HTTP, without Ray, and on the page in a browser."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from aigc_ray import registry
from aigc_ray.generate import generate
from aigc_ray.ingest import ingest
from aigc_ray.predict import predict
from aigc_ray.tasks.prognosis.task import Prognosis
from aigc_ray.train import train
from tests import cohort
from tests.browser import CHROMIUM, Browser
from tests.service import listening, problem
from tests.tasks.test_prognosis import DECLARED

SETTINGS = {
    "num_workers": 0, "steps": 60, "mixture": 4, "width": 16, "batch_size": 32,
    "validate_every": 20, "transfer_steps": 30,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A registry with a small model, trained and promoted as a user does it."""
    folder = tmp_path_factory.mktemp("home")
    cohort.write(folder / "patients.csv", 500)
    (folder / "columns.json").write_text(json.dumps(DECLARED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(folder / "home"))
        task = Prognosis(columns=str(folder / "columns.json"))
        ingest(task, str(folder / "patients.csv"), str(folder / "data"), parallel=0)
        summary = train("prognosis", str(folder / "data"), SETTINGS)
        registry.promote(summary["model"], "production")
        yield folder


@pytest.fixture(scope="module")
def url(home):
    with listening("prognosis") as address:
        yield address


def asked(url: str, path: str, **more):
    import httpx

    return httpx.post(f"{url}/v1/prognosis/{path}", timeout=60, **more)


def test_a_training_tells_how_curves_and_cohorts_fared(home):
    shown = registry.show("prognosis@production")
    info, card = shown["model"], shown["card"]
    metrics = info["metrics"]["test"]
    assert metrics["harrell_c"] > 0.6
    assert metrics["ibs"] < 0.25
    assert info["generation"]["tstr_over_trtr"] > 0.85
    assert "D-calibration" in card
    assert "images" not in card
    assert "integrated gradients" in card


def test_patients_are_answered_in_their_order_and_what_is_asked_for_all_holds_for_each(url):
    body = {"items": [{"age": 50}, {"age": 75, "horizons": [1]}], "horizons": [2, 4]}
    answer = asked(url, "predict", json=body).json()
    young, old = answer["items"]
    assert [one["time"] for one in young["horizons"]] == [2, 4]
    assert [one["time"] for one in old["horizons"]] == [1]
    assert young["risk"] < old["risk"]
    assert answer["model"]["task"] == "prognosis"


def test_a_thousand_patients_are_answered_in_one_request(url):
    items = [{"age": 40 + number / 20} for number in range(1000)]
    risks = [one["risk"] for one in asked(url, "predict", json={"items": items}).json()["items"]]
    assert len(risks) == 1000
    assert np.corrcoef(np.arange(1000), risks)[0, 1] > 0.9


def test_an_answer_is_explained_where_that_is_asked_for(url):
    body = {"items": [{"age": 80, "horizons": [2]}], "explain": True}
    explained = asked(url, "predict", json=body).json()["items"][0]["explanation"]
    assert set(explained["attributions"]) == {"age", "marker", "therapy", "grade"}


def test_the_rows_of_an_uploaded_table_are_patients(url):
    table = b"age,therapy,grade\n50,none,0\nNA,old,2\n81.5,,1\n"
    files = {"file": ("patients.csv", table, "text/csv")}
    answer = asked(url, "predict", files=files, data={"horizons": "1 2"}).json()
    assert len(answer["items"]) == 3
    assert all(len(one["horizons"]) == 2 for one in answer["items"])


@pytest.mark.parametrize(
    ("item", "field", "words"),
    [
        ({"age": 50, "height": 3}, "height", "height is not known here"),
        ({"age": "x"}, "age", "age is a number"),
        ({"therapy": "magic"}, "therapy", "therapy is one of none, old, new"),
        ({"age": 1, "horizons": ["soon"]}, "horizons", "horizons are times"),
    ],
)
def test_a_wrong_patient_is_a_problem_that_names_the_field(url, item, field, words):
    document = problem(asked(url, "predict", json={"items": [{"age": 1}, item]}), 422)
    assert (document["item"], document["field"]) == (1, field)
    assert words in document["detail"]


def test_a_table_that_cannot_be_read_is_a_problem(url):
    for content, words in ((b"age\n1,2\n", "row 1 has not"), (b"", "has no header")):
        files = {"file": ("patients.csv", content, "text/csv")}
        assert words in problem(asked(url, "predict", files=files), 422)["detail"]


def test_cohorts_and_times_are_generated(url):
    body = {"n": 5, "seed": 3}
    answer = asked(url, "generate", json=body).json()
    assert [item["number"] for item in answer["items"]] == [0, 1, 2, 3, 4]
    assert answer["items"] == asked(url, "generate", json=body).json()["items"]
    times = asked(url, "generate", json=body | {"patient": {"age": 70}}).json()["items"]
    assert all(set(item) == {"seed", "number", "time"} for item in times)
    problem(asked(url, "generate", json={"n": 1, "patient": {"height": 1}}), 422)


def test_a_table_is_predicted_and_a_cohort_is_written(home, tmp_path):
    (tmp_path / "new.csv").write_text("age,therapy\n60,none\nold,none\n75,new\n")
    out = str(tmp_path / "answers.jsonl")
    found = predict("prognosis@production", str(tmp_path / "new.csv"), out)
    assert (found["answered"], found["failed"]) == (2, 1)
    rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert rows[1]["error"] == "age is a number; got 'old'"
    assert rows[0]["risk"] < rows[2]["risk"] or rows[0]["median"] > 0
    (tmp_path / "none.csv").write_text("age,therapy\n")
    found = predict("prognosis@production", str(tmp_path / "none.csv"), out)
    assert (found["answered"], found["failed"]) == (0, 1)
    assert "none.csv holds no rows" in json.loads(Path(out).read_text())["error"]
    made = generate("prognosis@production", 40, str(tmp_path / "cohort.csv"))
    assert made["n"] == 40
    # What was generated can be learned from like the real.
    task = Prognosis(columns=str(home / "columns.json"))
    schema, _ = task.survey(str(tmp_path / "cohort.csv"))
    assert schema.schema["age"].unit == "years"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_foresees_a_patient_and_generates_a_cohort(url, tmp_path):
    pictures = Path(os.environ.get("AIGC_SCREENSHOTS") or tmp_path)
    browser = Browser()
    try:
        for width, name in ((1200, "wide"), (400, "narrow")):
            browser.errors.clear()
            browser.go(url, width)
            browser.wait("!document.querySelector('#patient-card').hidden")
            assert browser.run("document.querySelector('#image-card').hidden")
            assert "age (years)" in browser.text("#features")
            browser.type("[data-feature=age]", "75")
            browser.run("document.querySelector('[data-feature=therapy]').value = 'none'; 0")
            browser.run("document.querySelector('#if-feature').value = 'therapy'; 0")
            browser.type("#if-value", "new")
            browser.type("#horizons", "1.0955, 3")
            browser.press("Enter", 13)
            browser.wait("document.querySelectorAll('#course .curve polyline').length === 3")
            course = browser.text("#course")
            assert "without the event at 1.0955 years" in course
            assert "without the event at 3 years" in course
            assert "an association" in course
            assert len(browser.run("[...document.querySelectorAll('#course dt')].map(String)")) == 4
            signs = "[...document.querySelectorAll('#course dd')].map((b) => b.textContent[0])"
            bars = "[...document.querySelectorAll('#course progress')].map((b) => b.className)"
            colours = {"−": "less", "+": "more"}
            assert browser.run(bars) == [colours[sign] for sign in browser.run(signs)]
            assert "less" in browser.run(bars)
            browser.type("#n", "30")
            browser.press("Enter", 13)
            browser.wait("document.querySelectorAll('#rows tr').length === 21")
            assert "30 patients by prognosis" in browser.text("#made")
            room = "document.documentElement.scrollWidth - window.innerWidth"
            assert browser.run(room) <= 0, "the page is wider than the window"
            browser.picture(pictures / f"patient-{name}.png")
            assert browser.errors == []
        browser.type("#horizons", " soon")
        browser.press("Enter", 13)
        browser.wait("document.querySelector('#course .error')")
        assert "horizons are times from 0 on" in browser.text("#course .error")
    finally:
        browser.close()
