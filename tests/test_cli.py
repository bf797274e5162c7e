"""The commands, as a user types them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from aigc_ray import catalogue, fidelity, quickstart
from aigc_ray.cli import main
from aigc_ray.tasks.diagnosis import phantoms
from tests.tiny import TINY, ingested

SETTINGS = [f"{key}={value}" for key, value in (TINY | {"steps": 4, "num_workers": 0}).items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ingested(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A home with one tiny model, promoted."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(home))
        assert main(["train", "diagnosis", "--data", data, *SETTINGS]) == 0
        assert main(["models", "promote", "diagnosis:1"]) == 0
    return str(home)


@pytest.fixture
def run(trained, monkeypatch, capsys):
    """Runs a command in the trained home: exit code, result or text, what stderr says."""
    monkeypatch.setenv("AIGC_HOME", trained)

    def command(*words: str):
        capsys.readouterr()
        code = main(list(words))
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in words and code == 0 else out, err

    return command


def test_help_is_there_within_a_second():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "aigc_ray", "--help"], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - began < 1
    assert "quickstart" in done.stdout and "Not a medical device" in done.stdout


def test_evaluate_counts_how_often_a_split_was_looked_at(run, data):
    words = ("--data", data, "transfer_steps=2", "--json")
    _, first, _ = run("evaluate", "diagnosis@production", *words)
    code, second, _ = run("evaluate", "diagnosis:1", *words)
    assert code == 0 and second["metrics"] == first["metrics"]
    assert second["times_evaluated"] == first["times_evaluated"] + 1
    assert second["times_evaluated"] > 2  # training looked at it too
    assert {"auc", "acc", "nll", "ece_floor"} <= set(second["metrics"]) and second["rows"] == 32
    assert {"kid_ratio", "nn_auc", "copy_rate", "tstr_over_trtr"} <= set(second["generation"])
    page = Path(second["report"]).read_text()
    for part in ("ROC", "Reliability", "Risk against coverage", "kid ratio", "temperature"):
        assert part in page


def test_generate_writes_files_or_parquet(run, tmp_path):
    out = tmp_path / "images"
    words = ("--n", "3", "seed=5", "class=with lesion", "--json")
    code, result, _ = run("generate", "diagnosis:1", "--out", str(out), *words)
    assert code == 0 and result["n"] == 3
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert [item["image"] for item in items] == ["000000.png", "000001.png", "000002.png"]
    assert {item["class"] for item in items} == {"with lesion"}
    assert {item["seed"] for item in items} == {5}
    table = tmp_path / "images.parquet"
    assert run("generate", "diagnosis:1", "--out", str(table), *words)[0] == 0
    rows = pq.read_table(table).to_pylist()
    assert rows[2]["image"] == (out / "000002.png").read_bytes()


def test_predict_answers_for_each_file_and_says_why_not(run, tmp_path):
    images = tmp_path / "images"
    run("generate", "diagnosis:1", "--n", "2", "--out", str(images))
    out = tmp_path / "answers.jsonl"
    code, result, _ = run(
        "predict", "diagnosis@production", "--input", str(images), "--out", str(out), "--json"
    )
    assert code == 0 and (result["answered"], result["failed"]) == (2, 1)  # items.jsonl is no image
    rows = {Path(r["path"]).name: r for r in map(json.loads, out.read_text().splitlines())}
    assert sum(rows["000000.png"]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert "error" in rows["items.jsonl"]
    assert run("predict", "diagnosis:1", "--input", str(images), "--out", "answers.txt")[0] == 2


def test_models_and_runs_are_listed_and_shown(run):
    _, models, _ = run("models", "list", "--json")
    assert [(m["version"], m["aliases"]) for m in models] == [(1, ["production"])]
    assert models[0]["objective"]["name"] == "auc"
    _, card, _ = run("models", "show", "diagnosis@production")
    assert "not a medical device" in card.lower() and "phantoms" in card
    _, runs, _ = run("runs", "list", "--json")
    assert runs[0]["state"] == "done" and runs[0]["model"] == "diagnosis:1"
    assert run("runs", "show", runs[0]["name"], "--json")[1]["result"]["model"] == "diagnosis:1"


def test_public_data_sets_are_listed_with_their_licences(run):
    _, sets, _ = run("data", "list", "--json")
    assert {"pneumoniamnist", "retinamnist"} <= {one["name"] for one in sets}
    assert all(one["licence"] for one in sets)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "diagnoses", "--data", "x"], "nowhere|x|task"),
        (["train", "diagnosis", "--data", "/nowhere", "steps=1"], "/nowhere"),
        (["evaluate", "diagnosis:9", "--data", "x"], "9"),
        (["generate", "diagnosis:1", "--n", "1", "--out", "o", "class=cat"], "class is one of"),
        (["generate", "diagnosis:1", "--n", "0", "--out", "o"], "n is at least 1"),
        (["generate", "diagnosis:1", "--n", "1", "--out", "o", "colour=red"], "colour"),
        (["models", "promote", "diagnosis:7"], "7"),
        (["runs", "show", "none"], "there is no run 'none'"),
        (["data", "fetch", "nothing"], "nothing"),
        (["ingest", "diagnosis", "/nowhere", "d", "sise=3"], "did you mean size"),
        (["ingest", "diagnosis", "/nowhere", "d"], "/nowhere"),
    ],
)
def test_a_mistake_ends_with_2_and_one_sentence(run, words, sentence):
    code, out, err = run(*words)
    assert code == 2 and out == ""
    assert err.startswith("aigc-ray: ") and err.count("\n") == 1
    assert any(part in err for part in sentence.split("|"))


def test_words_that_are_no_settings_are_refused():
    with pytest.raises(SystemExit) as ended:
        main(["models", "list", "extra"])
    assert ended.value.code == 2


def test_an_interrupted_training_leaves_no_process_and_goes_on(data, home):
    command = [sys.executable, "-m", "aigc_ray", "train", "diagnosis", "--data", data]
    command += [*SETTINGS, "steps=100000", "num_workers=2", "checkpoint_every=5"]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(home.glob("runs/*/checkpoints/*/MANIFEST.json")):
        assert time.monotonic() < until and job.poll() is None
        time.sleep(0.1)
    family = psutil.Process(job.pid).children(recursive=True)
    assert len(family) > 3  # Ray and two workers
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130 and "interrupted; the same command goes on from here" in err
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_a_quickstart_whose_bucket_is_gone_does_not_promise_to_go_on(monkeypatch, capsys):
    def interrupted(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "quickstart", interrupted)
    assert main(["quickstart", "--s3"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.timeout(600)
def test_the_quickstart_goes_the_whole_way_through_s3(monkeypatch, capsys, free_port, tmp_path):
    """Without any data within reach, on phantoms, in a bucket of a server on loopback."""

    fetch = catalogue.fetch

    def unreachable(name, home=None, timeout=10.0):
        if name == quickstart.PATIENTS:
            return fetch(name)
        if name == quickstart.COMPOUNDS:  # a few of them
            lines = fetch(name).read_text().splitlines()[:300]
            (tmp_path / "compounds.smi").write_text("\n".join(lines))
            return tmp_path / "compounds.smi"
        raise catalogue.Unreachable(f"{name}: nothing answers within {timeout:g} s")

    monkeypatch.setattr(catalogue, "fetch", unreachable)
    monkeypatch.setattr(quickstart, "SETTINGS", TINY | {"num_workers": 2, "steps": 4})
    # One training through workers is enough of them; each start takes half a minute.
    small = {"num_workers": 0, "steps": 40, "validate_every": 20, "transfer_steps": 20}
    monkeypatch.setattr(quickstart, "PROGNOSIS", small)
    tiny = {"num_workers": 0, "steps": 20, "adversarial_steps": 2, "width": 32, "critic_width": 16}
    monkeypatch.setattr(quickstart, "MOLECULES", tiny | {"batch_size": 32, "references": 100})
    tiny = {"num_workers": 0, "batch_size": 16, "width": 8, "recogniser_width": 8}
    tiny |= {"precision": "fp32", "transfer_steps": 0}
    monkeypatch.setattr(quickstart, "SEQUENCES", {"train": 96, "val": 40, "test": 40})
    monkeypatch.setattr(quickstart, "DNA", tiny | {"steps": 10, "validate_every": 10})
    monkeypatch.setattr(quickstart, "CHAINS", 24)
    few = {"steps": 4, "validate_every": 4, "references": 20}
    monkeypatch.setattr(quickstart, "PROTEINS", tiny | few)
    monkeypatch.setattr(fidelity, "GENERATED", 50)  # a recovered structure takes its time
    link, pages = quickstart._link, []

    def followed(uri):
        pages.append(httpx.get(link(uri)).text)
        return link(uri)

    monkeypatch.setattr(quickstart, "_link", followed)
    words = ["quickstart", "--exit", "--s3", "--port", str(free_port), "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["synthetic"] and "phantoms" in err
    assert result["answer"]["model"]["version"] == 1
    assert set(result["answer"]["items"][0]["probabilities"]) == set(phantoms.CLASSES)
    assert set(result["seconds"]) >= {"data", "ingest", "train", "serve", "request", "total"}
    course = result["prognosis"]["answer"]
    assert course["model"]["task"] == "prognosis"
    assert [one["time"] for one in course["items"][0]["horizons"]] == [365, 1095]
    assert result["prognosis"]["metrics"]["test"]["harrell_c"] > 0.6
    made = result["molecules"]["answer"]
    assert made["model"]["task"] == "molecules" and len(made["items"]) == 4
    assert all(0.7 <= item["properties"]["qed"] <= 1 for item in made["items"])
    for task, phase in (("dna", "sequence"), ("proteins", "structure")):
        found = result[task]
        assert found["synthetic"] and found["answer"]["model"]["task"] == task
        assert {task, phase} <= set(result["seconds"])
        assert f"{task}: {task}:1, phantoms drawn by this program, test split auc 0." in err
    assert all(len(item["sequence"]) == 80 for item in result["dna"]["answer"]["items"])
    (window,) = result["proteins"]["answer"]["items"]
    assert len(window["secondary_structure"]) == 64 and "A:17-80" in window
    assert result["report"].startswith("s3://") and len(pages) == 5
    assert all("</html>" in page for page in pages)
    told = ["training data are phantoms" in page for page in pages]
    assert told == [True, False, False, True, True]
    assert "the report  http://127.0.0.1:" in err and "HTTP/1.1" not in err
