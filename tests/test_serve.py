"""The HTTP side and the deployment's class around a tiny real model, without Ray."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from aigc_ray import registry
from aigc_ray.serve import backend, deployment, ingress, security
from aigc_ray.serve.problems import down
from aigc_ray.tasks.diagnosis.data import BURNED_IN
from tests.dicom_files import encoded as dicom
from tests.service import (
    CLASSES,
    ask,
    bomb,
    item,
    judged,
    png,
    predicted,
    problem,
    register,
)

PREDICT, GENERATE = "/v1/diagnosis/predict", "/v1/diagnosis/generate"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    where = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", where)
        registry.promote(f"diagnosis:{register(1, where)}")
        made = deployment.TaskServer("diagnosis@production", poll_seconds=1000)
    yield made
    made.close()


def test_an_upload_and_base64_are_answered_alike_and_name_the_model(server):
    by_json, by_form = ask(
        server,
        predicted(item(png(0)), item(png(1))),
        ("POST", PREDICT, {"files": [("file", ("a.png", png(k))) for k in (0, 1)]}),
    )
    assert by_json.json() == by_form.json()
    assert by_json.json()["model"] == server._served.name
    assert server._served.name["task"] == "diagnosis" and server._served.name["version"] == 1
    for answer in by_json.json()["items"]:
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_frame_belongs_to_the_file_before_it(server):
    frames = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    file = ("file", ("cine", dicom(frames, NumberOfFrames=2, BurnedInAnnotation="YES")))
    parts = [file, ("frame", (None, "2")), file, ("frame", (None, "1"))]
    first, second = (dicom(frame) for frame in frames)
    by_frame, plain = ask(
        server,
        ("POST", PREDICT, {"files": parts}),
        ("POST", PREDICT, {"files": [("file", ("x", second)), ("file", ("x", first))]}),
    )
    got, wanted = by_frame.json()["items"], plain.json()["items"]
    assert [answer.pop("warnings") for answer in got] == [[BURNED_IN]] * 2
    assert got == wanted and got[0] != got[1]


def test_an_answer_is_withheld_with_its_reason_and_a_finding_called_at_its_point(home):
    for number, threshold in ((1, (0.0, 0.0)), (2, (0.01, 2.0)), (3, (2.0, 2.0))):
        register(number, str(home), calibration=judged(threshold=threshold))
    said = []
    for number in (1, 2, 3):
        made = deployment.TaskServer(f"diagnosis:{number}", poll_seconds=1000)
        said.append(ask(made, predicted(item(png(0)))).json()["items"][0])
        made.close()
    unsure, sure, unlike = said
    assert unsure["abstained"] and unsure["label"] is None
    assert unsure["reason"] == "it cannot be told between normal and pneumonia"
    assert unsure["set"] == list(CLASSES)
    assert not sure["abstained"] and sure["label"] in CLASSES and sure["set"] == ["normal"]
    assert unlike["abstained"] and unlike["reason"] == "no class is likely enough"
    for one in said:
        finding = one["findings"]["pneumonia"]
        assert finding["called"] == (one["probabilities"]["pneumonia"] >= finding["threshold"])


def test_an_explanation_comes_as_a_picture_or_is_withheld_with_the_reason(home):
    gate = {"method": "occlusion", "correlation": [0.1], "limit": 0.5, "rows": 16}
    register(1, str(home), explanation=gate | {"passes": True})
    register(2, str(home), explanation=gate | {"passes": False})
    register(3, str(home))
    said = []
    for number in (1, 2, 3):
        made = deployment.TaskServer(f"diagnosis:{number}", poll_seconds=1000)
        form = {"files": [("file", ("a.png", png(0))), ("explain", (None, "true"))]}
        by_form, by_json, plain = ask(
            made,
            ("POST", PREDICT, form),
            ("POST", PREDICT, {"json": {"items": [item(png(0))], "explain": True}}),
            predicted(item(png(0))),
        )
        assert by_form.json() == by_json.json()
        said.append(by_json.json()["items"][0].pop("explanation"))
        assert "explanation" not in plain.json()["items"][0]
        made.close()
    picture = Image.open(io.BytesIO(base64.b64decode(said[0]["image"])))
    assert picture.format == "PNG" and picture.width >= 224
    assert said[0]["of"] in CLASSES and said[0]["method"] == "occlusion"
    assert said[1] == {"withheld": "this model's heat maps do not hang on what it learned"}
    assert said[2] == {"withheld": "this model's heat maps were never tested"}


def test_an_item_is_answered_alike_whatever_shares_its_batch(server):
    async def go() -> Any:
        alone = await server.predict_list([item(png(0))])
        crowd = await server.predict_list([item(png(number)) for number in range(21)])
        last = await server.predict_list([item(png(9)), {"image": "?"}, item(png(0))])
        return alone["answers"][0], crowd["answers"][0], last["answers"][2]

    alone, crowded, last = asyncio.run(go())
    for other in (crowded, last):
        for name in CLASSES:  # summed in another order: the sixth digit may differ by one
            gap = abs(alone["probabilities"][name] - other["probabilities"][name])
            assert gap <= 1.5e-6


class Counted:
    """A server that writes down how many items each call had, and takes its time."""

    def __init__(self, server: Any, seconds: float = 0.0) -> None:
        self.server, self.seconds, self.calls = server, seconds, []
        self.describe, self.generate = server.describe, server.generate

    async def predict_list(self, items: list[Any]) -> Any:
        self.calls.append(len(items))
        await asyncio.sleep(self.seconds)
        return await self.server.predict_list(items)


def test_requests_are_gathered_and_a_bad_one_spoils_no_other(server):
    counted = Counted(server, 0.2)
    requests = [predicted(item(png(number))) for number in range(20)]
    requests[3] = predicted(item(png(3)), item(b"no image"))
    answers = ask(counted, *requests)
    assert sum(counted.calls) == 21 and len(counted.calls) <= 4 and max(counted.calls) <= 16
    document = problem(answers[3], 422)
    assert document["item"] == 1 and document["field"] == "image"
    assert document["detail"].startswith("item 1: ")
    good = [answer for number, answer in enumerate(answers) if number != 3]
    assert {answer.status_code for answer in good} == {200}
    alone = ask(server, requests[7]).json()["items"][0]["probabilities"]
    assert answers[7].json()["items"][0]["probabilities"] == pytest.approx(alone, abs=1.5e-6)


def test_a_request_is_never_split_between_two_calls(server):
    counted = Counted(server, 0.05)
    many = [item(png(0))] * 40
    answers = ask(counted, *[predicted(item(png(1)))] * 5, predicted(*many))
    assert 40 in counted.calls and len(answers[-1].json()["items"]) == 40


def test_every_bad_item_of_a_request_is_named(server):
    answer = ask(server, predicted(item(b"x"), item(png(0)), {"image": "?"}, {"colour": 1}))
    document = problem(answer, 422)
    assert [fault["item"] for fault in document["errors"]] == [0, 2, 3]
    assert document["errors"][2]["field"] == "colour"


def test_beyond_what_may_wait_clients_are_asked_to_come_back(server):
    full = [predicted(*[item(png(0))] * 64)] * (backend.WAITING // 64 + 4)
    answers = ask(Counted(server, 0.1), *full)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 1 <= len(refused) < len(answers)
    for answer in refused:
        problem(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1


JSON = {"content-type": "application/json"}
IMAGE = {"image": ""}
REFUSED: dict[str, tuple[int, str, str, dict[str, Any], dict[str, Any]]] = {
    "unreadable JSON": (400, "POST", PREDICT, {"content": b'{"items": [', "headers": JSON}, {}),
    "NaN": (400, "POST", PREDICT, {"content": b'{"items": NaN}', "headers": JSON}, {}),
    "deep JSON": (400, "POST", PREDICT, {"content": b"[" * 200_000, "headers": JSON}, {}),
    "not UTF-8": (400, "POST", PREDICT, {"content": b'{"\xff": 1}', "headers": JSON}, {}),
    "no object": (422, "POST", PREDICT, {"json": [1]}, {}),
    "no items": (422, "POST", PREDICT, {"json": {}}, {"field": "items"}),
    "empty": (422, "POST", PREDICT, {"json": {"items": []}}, {"field": "items"}),
    "65 items": (422, "POST", PREDICT, {"json": {"items": [IMAGE] * 65}}, {"field": "items"}),
    "1001 items": (422, "POST", PREDICT, {"json": {"items": [{}] * 1001}}, {"field": "items"}),
    "a path": (422, "POST", PREDICT, {"json": {"items": ["/etc/passwd"]}}, {"item": 0}),
    "a text image": (422, "POST", PREDICT, {"json": {"items": [{"image": 5}]}}, {"field": "image"}),
    "unknown key": (422, "POST", PREDICT, {"json": {"items": [{}], "x": 1}}, {"field": "x"}),
    "explain": (422, "POST", PREDICT, {"json": {"items": [{}], "explain": "why"}}, {}),
    "explain many": (422, "POST", PREDICT, {"json": {"items": [{}] * 17, "explain": True}}, {}),
    "a server's file": (
        422, "POST", PREDICT, {"json": {"items": [{"file": "/etc/passwd"}]}},
        {"item": 0, "field": "file"},
    ),
    "a bomb": (
        422, "POST", PREDICT, {"files": [("file", ("bomb.png", bomb()))]},
        {"item": 0, "field": "file"},
    ),
    "a text named .png": (
        422, "POST", PREDICT, {"files": [("file", ("a.png", b"hello"))]},
        {"item": 0, "field": "file"},
    ),
    "half an image": (
        422, "POST", PREDICT, {"files": [("file", ("a.png", png(0)[:300]))]}, {"item": 0},
    ),
    "another part": (
        422, "POST", PREDICT, {"files": [("picture", ("a.png", png(0)))]}, {"field": "picture"},
    ),
    "a frame too many": (
        422, "POST", PREDICT,
        {"files": [("file", ("a", png(0))), ("file", ("b", png(0))), ("frame", (None, "2"))]},
        {"item": 1, "field": "file"},
    ),
    "a frame that is none": (
        422, "POST", PREDICT, {"files": [("file", ("a.png", png(0))), ("frame", (None, "all"))]},
        {"item": 0, "field": "frame"},
    ),
    "a frame of nothing": (
        422, "POST", PREDICT, {"files": [("frame", (None, "1")), ("file", ("a.png", png(0)))]},
        {"field": "frame"},
    ),
    "65 files": (
        422, "POST", PREDICT, {"files": [("file", ("a.png", b"x"))] * 65}, {"field": "file"},
    ),
    "no boundary": (
        400, "POST", PREDICT,
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, {},
    ),
    "another type": (415, "POST", PREDICT, {"content": b"x", "headers": {}}, {}),
    "unknown task": (404, "POST", "/v1/alchemy/predict", {"json": {"items": [{}]}}, {}),
    "unknown path": (404, "GET", "/v2", {}, {}),
    "wrong method": (405, "GET", PREDICT, {}, {}),
    "n of 0": (422, "POST", GENERATE, {"json": {"n": 0}}, {"field": "n"}),
    "n as text": (422, "POST", GENERATE, {"json": {"n": "8"}}, {"field": "n"}),
    "a huge seed": (422, "POST", GENERATE, {"json": {"seed": 2**70}}, {"field": "seed"}),
    "unknown wish": (422, "POST", GENERATE, {"json": {"colour": 1}}, {"field": "colour"}),
    "unknown class": (422, "POST", GENERATE, {"json": {"class": "cat"}}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_cannot_be_answered_is_told_why(server, case):
    status, method, path, more, members = REFUSED[case]
    document = problem(ask(server, (method, path, more)), status)
    assert members.items() <= document.items()
    assert "/etc" not in json.dumps(document)


def test_refusals_say_what_would_be_right(server):
    task, method, wanted = ask(
        server,
        ("POST", "/v1/alchemy/predict", {"json": {}}),
        ("GET", PREDICT, {}),
        ("POST", GENERATE, {"json": {"class": "cat"}}),
    )
    assert task.json()["detail"] == "alchemy is not served here; served are: diagnosis"
    assert method.headers["allow"] == "POST"
    assert "normal, pneumonia" in wanted.json()["detail"]


def test_a_body_is_refused_by_what_comes_whatever_it_says_of_its_length(server):
    sent = 0

    async def chunks() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 1 << 20
            yield bytes(1 << 20)

    announced, chunked = ask(
        server,
        ("POST", PREDICT, {"content": bytes(100 << 20), "headers": JSON}),
        ("POST", PREDICT, {"content": chunks(), "headers": JSON}),
    )
    problem(announced, 413)
    assert "64 MiB" in problem(chunked, 413)["detail"] and sent <= 66 << 20


def test_uploads_in_memory_are_bounded_together(server, monkeypatch):
    monkeypatch.setattr(security, "HELD_BYTES", 3000)
    assert problem(ask(server, predicted(item(bytes(4000)))), 429)
    assert ask(server, predicted(item(png(0)))).status_code == 200


def test_the_same_seed_gives_the_same_images(server):
    wish = {"n": 3, "seed": 5, "class": "pneumonia"}
    first, again, other, turns = ask(
        server,
        ("POST", GENERATE, {"json": wish}),
        ("POST", GENERATE, {"json": wish}),
        ("POST", GENERATE, {"json": {**wish, "seed": 6}}),
        ("POST", GENERATE, {"json": {"n": 3}}),
    )
    assert first.json() == again.json() and first.json()["shortfall"] == []
    assert first.json()["model"] == server._served.name
    for number, sample in enumerate(first.json()["items"]):
        assert (sample["seed"], sample["number"], sample["class"]) == (5, number, "pneumonia")
        assert base64.b64decode(sample["image"]).startswith(b"\x89PNG")
    images = {sample["image"] for sample in first.json()["items"] + other.json()["items"]}
    assert len(images) == 6
    assert [one["class"] for one in turns.json()["items"]] == ["normal", "pneumonia", "normal"]


def test_streamed_samples_are_those_of_the_whole_answer(server):
    whole, lines = ask(
        server,
        ("POST", GENERATE, {"json": {"n": 70, "seed": 1}}),
        ("POST", GENERATE, {"json": {"n": 70, "seed": 1}, "headers": {"accept": ingress.LINES}}),
    )
    assert lines.headers["content-type"].startswith(ingress.LINES)
    streamed = [json.loads(line) for line in lines.text.splitlines()]
    assert all(line.pop("model") == server._served.name for line in streamed)
    assert streamed == whole.json()["items"]


class Broken(Counted):
    async def predict_list(self, items: list[Any]) -> Any:
        raise RuntimeError("Jane Doe, born 1970")

    async def describe(self) -> Any:
        raise down("diagnosis", "it does not answer in time")

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.describe = type(self).describe.__get__(self)  # type: ignore[method-assign]
        self.generate = self.break_off

    async def break_off(self, request: Any) -> Any:
        yield {"model": {}}
        yield {"seed": 0, "image": b"x"}
        raise RuntimeError("Jane Doe, born 1970")


def test_a_fault_of_ours_tells_and_logs_no_data(server, caplog):
    answer = ask(Broken(server), predicted(item(png(0))))
    assert "Jane" not in json.dumps(problem(answer, 500))
    assert "RuntimeError" in caplog.text and "Jane" not in caplog.text


def test_samples_that_break_off_end_in_a_line_that_says_so(server, caplog):
    wish = {"json": {}, "headers": {"accept": ingress.LINES}}
    with pytest.raises(RuntimeError, match="broke off"):  # what breaks the connection
        ask(Broken(server), ("POST", GENERATE, wish))
    assert "Jane" not in caplog.text
    problem(ask(Broken(server), ("POST", GENERATE, {"json": {}})), 500)


def test_readiness_names_the_task_that_does_not_answer(server):
    good, health = ask(server, ("GET", "/readyz", {}), ("GET", "/healthz", {}))
    assert good.json()["serving"] == [server._served.name] and health.status_code == 200
    ready, health, listed = ask(
        Broken(server), ("GET", "/readyz", {}), ("GET", "/healthz", {}), ("GET", "/v1/models", {})
    )
    document = problem(ready, 503)
    assert document["tasks"] == ["diagnosis"] and "diagnosis" in document["detail"]
    assert health.status_code == 200
    assert listed.json()["serving"][0]["problem"]["status"] == 503


def test_models_lists_the_registry_and_what_is_served(server, home):
    register(3, str(home))
    found = ask(server, ("GET", "/v1/models", {})).json()
    assert [(one["task"], one["version"]) for one in found["models"]] == [("diagnosis", 1)]
    (one,) = found["serving"]
    assert one["classes"] == list(CLASSES) and one["synthetic"] is True
    assert one["schema"][0]["shape"] == [1, 28, 28]


def test_a_token_guards_all_but_the_page_and_the_health_checks(server):
    def with_token(value: str) -> dict[str, Any]:
        return {"json": {"items": [item(png(0))]}, "headers": {"authorization": value}}

    for value in (
        "",
        "Bearer",
        "Bearer wrong",
        "Basic sesame",
        "sesame",
        "Bearer sesame2",
        "Bearer ä",
    ):
        answer = ask(server, ("POST", PREDICT, with_token(value.encode())), token="sesame")  # type: ignore[arg-type]
        problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    right = ask(server, ("POST", PREDICT, with_token("Bearer sesame")), token="sesame")
    assert right.status_code == 200
    problem(ask(server, ("GET", "/v1/models", {}), token="sesame"), 401)
    for path in ("/", "/healthz", "/readyz", "/docs", "/page/page.js"):
        assert ask(server, ("GET", path, {}), token="sesame").status_code == 200


def test_every_answer_has_the_headers_that_keep_a_browser_safe(server):
    answers = ask(server, ("GET", "/", {}), ("GET", "/nothing", {}), predicted({}), token=None)
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
    assert answers[2].headers["cache-control"] == "no-store"


def test_the_page_loads_nothing_from_outside_and_holds_no_inline_code(server):
    for path in ("/", "/docs"):
        text = ask(server, ("GET", path, {})).text
        assert not re.search(r"https?://|<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", text)
        parts = re.findall(r'(?:src|href)="(/[^"]*)"', text)
        assert len(parts) >= 3
        for part in parts:
            assert ask(server, ("GET", part, {})).status_code == 200, part
    assert "not a medical device" in ask(server, ("GET", "/", {})).text


def test_openapi_describes_both_verbs(server):
    found = ask(server, ("GET", "/openapi.json", {})).json()
    for verb in ("predict", "generate"):
        described = found["paths"][f"/v1/{{task}}/{verb}"]["post"]
        assert "application/json" in described["requestBody"]["content"]
        assert {"200", "400", "413", "422", "429", "503"} <= described["responses"].keys()


def test_generation_for_too_many_at_once_is_put_off(server):
    wishes = [("POST", GENERATE, {"json": {"n": 64}})] * (ingress.GENERATING + 2)
    answers: list[httpx.Response] = ask(server, *wishes)
    assert [answer.status_code for answer in answers].count(200) >= ingress.GENERATING
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        problem(answer, 429)
        assert answer.headers["retry-after"] == "10"
