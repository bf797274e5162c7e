"""One real deployment on a Ray of its own, asked over HTTP and through a browser."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from aigc_ray import registry, serving
from aigc_ray.errors import UserError
from tests.browser import CHROMIUM, Browser
from tests.service import CLASSES, bomb, item, judged, png, problem, register

ROOT = Path(__file__).parents[1]
TOKEN = "a token for the tests"
PREDICT, GENERATE = "/v1/diagnosis/predict", "/v1/diagnosis/generate"
GATE = {"method": "occlusion", "correlation": [0.1], "limit": 0.5, "passes": True, "rows": 8}

pytestmark = pytest.mark.timeout(600)


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A home with one model, in production."""
    home = str(tmp_path_factory.mktemp("home"))
    more = {"calibration": judged(threshold=(0.0, 2.0)), "explanation": GATE}
    registry.promote(f"diagnosis:{register(1, home, **more)}", home=home)
    return home


@pytest.fixture(scope="module")
def url(where):
    """The address of a running service, which wants the token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", where)
        patch.setenv("AIGC_TOKEN", TOKEN)
        chosen = port()
        stop = serving.run(port=chosen, block=False, poll_seconds=0.5)
        try:
            yield f"http://127.0.0.1:{chosen}"
        finally:
            stop()


@pytest.fixture
def client(url) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        yield client


def test_json_and_uploads_are_answered_with_the_model(client):
    by_json = client.post(PREDICT, json={"items": [item(png(0)), item(png(1))]}).json()
    by_form = client.post(PREDICT, files=[("file", ("a.png", png(k))) for k in (0, 1)]).json()
    assert by_json == by_form
    served = client.get("/readyz").json()["serving"]
    assert [by_json["model"]] == served and served[0]["version"] == 1


def test_the_same_seed_gives_the_same_images_whole_or_streamed(client):
    wish = {"n": 3, "seed": 7, "class": "pneumonia"}
    first, again = (client.post(GENERATE, json=wish).json() for _ in range(2))
    assert first == again and len({sample["image"] for sample in first["items"]}) == 3
    with client.stream(
        "POST", GENERATE, json=wish, headers={"accept": "application/x-ndjson"}
    ) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert all(line.pop("model") == first["model"] for line in lines)
    assert lines == first["items"]


def test_a_stream_begins_before_it_is_complete_and_may_be_left(client):
    wish = {"n": 10_000}
    start = time.monotonic()
    for _ in range(6):  # more than may run at a time, so each that was left has ended
        with client.stream(
            "POST", GENERATE, json=wish, headers={"accept": "application/x-ndjson"}
        ) as answer:
            assert answer.status_code == 200
            assert json.loads(next(answer.iter_lines()))["number"] == 0
        time.sleep(1)
    assert time.monotonic() - start < 60
    assert client.post(GENERATE, json={"n": 1}).status_code == 200


REFUSED: dict[str, tuple[int, str, dict[str, Any], dict[str, Any]]] = {
    "unreadable": (
        400, PREDICT, {"content": b"{", "headers": {"content-type": "application/json"}}, {},
    ),
    "65 items": (422, PREDICT, {"json": {"items": [{"image": ""}] * 65}}, {"field": "items"}),
    "1001 items": (422, PREDICT, {"json": {"items": [{}] * 1001}}, {"field": "items"}),
    "unknown key": (422, PREDICT, {"json": {"items": [{"colour": 1}]}}, {"field": "colour"}),
    "a text named .png": (
        422, PREDICT, {"files": [("file", ("a.png", png(0))), ("file", ("b.png", b"text"))]},
        {"item": 1, "field": "file"},
    ),
    "a bomb": (422, PREDICT, {"files": [("file", ("a.png", bomb()))]}, {"item": 0}),
    "another type": (415, PREDICT, {"content": b"x"}, {}),
    "unknown class": (422, GENERATE, {"json": {"class": "cat"}}, {}),
    "unknown task": (404, "/v1/alchemy/generate", {"json": {}}, {}),
    "unknown path": (404, "/v3", {"json": {}}, {}),
    "wrong method": (405, "/readyz", {"json": {}}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_problem_documents(client, case):
    status, path, more, members = REFUSED[case]
    assert members.items() <= problem(client.post(path, **more), status).items()


def test_a_hundred_megabytes_are_refused_whether_announced_or_not(client):
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1_000_000)

    (replica,) = _replicas("Ingress")
    before = replica.memory_info().rss
    for length in ({"content-length": "100000000"}, {}):
        headers = {"content-type": "application/json", **length}
        problem(client.post(PREDICT, content=chunks(), headers=headers), 413)
        if length:  # unannounced, Serve itself passes on what comes until we refuse
            assert replica.memory_info().rss - before < 50e6
    upload = client.post(PREDICT, files={"file": ("a.png", bytes(100_000_000))})
    problem(upload, 413)
    assert client.get("/healthz").status_code == 200


def test_without_the_token_only_page_and_health_answer(url):
    for method, path in (("POST", PREDICT), ("POST", GENERATE), ("GET", "/v1/models")):
        answer = httpx.request(method, url + path)
        problem(answer, 401)
    for path in ("/", "/healthz", "/readyz", "/docs", "/page/page.css"):
        assert httpx.get(url + path).status_code == 200


def test_a_port_that_is_taken_is_told_in_words(url, where, monkeypatch):
    monkeypatch.setenv("AIGC_HOME", where)
    with pytest.raises(UserError, match="cannot be served on"):
        serving.run(port=int(url.rpartition(":")[2]))
    monkeypatch.setenv("AIGC_HOME", f"{where}-empty")
    with pytest.raises(UserError, match="no model is promoted"):
        serving.run(port=port())


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_person_sees_the_answer_and_the_generated_images(url, tmp_path):
    pictures = Path(os.environ.get("AIGC_SCREENSHOTS") or tmp_path)
    image, text = tmp_path / "chest.png", tmp_path / "notes.png"
    image.write_bytes(png(3, (120, 100)))
    text.write_bytes(b"no image at all")
    browser = Browser()
    try:
        for width, name in ((1200, "wide"), (400, "narrow")):
            browser.errors.clear()
            browser.go(url, width)
            if width == 1200:
                browser.wait("!document.querySelector('#token-form').hidden")
                browser.picture(pictures / "page-token.png")
                browser.type("#token", TOKEN)
                browser.press("Enter", 13)
                assert "401" in browser.errors.pop()
            browser.wait("!document.querySelector('main').hidden")
            assert "version" in browser.text("#served")
            assert "phantoms" in browser.text("#synthetic")
            assert browser.text().count("not a medical device") == 1

            browser.choose("#file", image)
            browser.wait("document.querySelector('#result .label')")
            assert browser.text("#result .label") in CLASSES
            bars = browser.run("[...document.querySelectorAll('progress')].map((b) => b.value)")
            assert len(bars) == 2 and sum(bars) == pytest.approx(1, abs=1e-5)
            assert "version" in browser.text("#result .model")
            shown = "document.querySelector('#preview-image').naturalWidth === 100"
            browser.wait(shown)
            assert "At the operating point pneumonia is" in browser.text("#result")
            browser.wait("document.querySelector('#result .heat img').naturalWidth >= 224")

            browser.run("document.querySelector('#class').value = 'pneumonia'; 0")
            browser.type("#n", "5")
            browser.type("#seed", "11")
            browser.press("Enter", 13)
            browser.wait("document.querySelectorAll('#gallery img').length === 5")
            loaded = "[...document.querySelectorAll('#gallery img')].every((i) => i.naturalWidth)"
            browser.wait(loaded)
            assert "pneumonia, seed 11, no. 4" in browser.text("#gallery")
            room = "document.documentElement.scrollWidth - window.innerWidth"
            assert browser.run(room) <= 0, "the page is wider than the window"
            browser.picture(pictures / f"page-{name}.png")
            assert browser.errors == []  # of the content security policy, for one

        browser.choose("#file", text)
        browser.wait("document.querySelector('#result .error')")
        assert "is not a PNG, JPEG, TIFF or DICOM image" in browser.text("#result .error")
        browser.picture(pictures / "page-error.png")
        browser.go(f"{url}/docs")
        browser.wait("document.querySelectorAll('#operations section').length >= 4")
        browser.picture(pictures / "page-docs.png")
    finally:
        browser.close()


def _replicas(deployment: str) -> list[psutil.Process]:
    """Ours only: the processes below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if f"ServeReplica:{deployment}" in name or f":{deployment}" in name:
            found.append(process)
    return found


def test_requests_go_on_when_a_replica_is_killed(client):
    """Those in flight are asked again, those that come meanwhile wait for the next replica."""
    (replica,) = _replicas("TaskDeployment")
    statuses: list[int] = []

    def ask() -> None:
        for number in range(6):
            with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=90) as own:
                answer = own.post(PREDICT, json={"items": [item(png(number))]})
                statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    replica.kill()
    for thread in threads:
        thread.join()
    assert len(statuses) == 18 and set(statuses) == {200}
    (successor,) = _replicas("TaskDeployment")
    assert successor.pid != replica.pid


def test_promotion_reaches_the_running_service_without_a_failed_request(client, where):
    before = client.post(PREDICT, json={"items": [item(png(0))]}).json()
    assert before["model"]["version"] == 1
    version = register(2, where)
    registry.promote(f"diagnosis:{version}", home=where)
    end, seen = time.monotonic() + 60, []
    while not seen or seen[-1][0] != version:
        assert time.monotonic() < end
        answer = client.post(PREDICT, json={"items": [item(png(0))]})
        assert answer.status_code == 200
        seen.append((answer.json()["model"]["version"], answer.json()["items"]))
    versions = [one for one, _ in seen]
    assert versions == sorted(versions)  # the old ones first, then the new
    for one, items in seen:
        assert (items == before["items"]) == (one == 1)
    assert client.get("/readyz").json()["serving"][0]["version"] == version
    made = client.post(GENERATE, json={}).json()
    assert made["model"]["version"] == version


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_service_and_leaves_no_process(where, kind, tmp_path):
    chosen = port()
    script = f"from aigc_ray import serving; serving.run(port={chosen})"
    environment = {**os.environ, "AIGC_HOME": where}
    environment.pop("RAY_ADDRESS", None)
    told = tmp_path / "told"
    with told.open("wb") as errors:
        service = subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment,
            cwd=ROOT,
            stderr=errors,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 120
        while True:
            assert service.poll() is None and time.monotonic() < end
            try:
                if httpx.get(f"http://127.0.0.1:{chosen}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        family = psutil.Process(service.pid).children(recursive=True)
        assert len(family) > 5
        if kind == signal.SIGINT:  # as a terminal sends Ctrl-C, to every process at once
            os.killpg(service.pid, kind)
        else:
            service.send_signal(kind)
        assert service.wait(60) == 0
        _, alive = psutil.wait_procs(family, timeout=15)
        assert alive == []
        assert f"@production: http://127.0.0.1:{chosen} (Ctrl-C ends it)" in told.read_text()
    finally:
        service.kill()
        service.wait()
