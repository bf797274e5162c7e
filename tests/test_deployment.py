"""What serves a task: the deployment's class, the batcher before it, the configuration."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from aigc_ray import registry
from aigc_ray.errors import UserError
from aigc_ray.schema import Schema
from aigc_ray.serve import backend, deployment, ingress
from aigc_ray.serve.problems import down
from aigc_ray.tasks.diagnosis.task import Diagnosis
from tests.service import ask, item, png, predicted, register

ROOT = Path(__file__).parents[1]


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_running_server_follows_the_alias_and_survives_a_bad_version(home, caplog):
    where = str(home)
    registry.promote(f"diagnosis:{register(1, where)}")
    server = deployment.TaskServer("diagnosis@production", poll_seconds=0.05)
    try:
        first = ask(server, predicted(item(png(0)))).json()
        registry.promote(f"diagnosis:{register(2, where)}")
        wait_for(lambda: server._served.name["version"] == 2)
        second = ask(server, predicted(item(png(0)))).json()
        assert second["model"]["version"] == 2 and first["items"] != second["items"]

        registry.promote(f"diagnosis:{register(3, where, spoil=True)}")
        wait_for(lambda: "not fit for use" in caplog.text)
        time.sleep(0.3)
        assert caplog.text.count("not fit for use") == 1  # told once, not at every look
        assert ask(server, predicted(item(png(0)))).json() == second

        registry.rollback("diagnosis")
        registry.rollback("diagnosis")
        wait_for(lambda: server._served.name["version"] == 1)
        assert ask(server, predicted(item(png(0)))).json() == first
    finally:
        server.close()


def test_a_model_has_made_a_sample_before_it_answers(home, monkeypatch):
    asked = []
    generate = Diagnosis.generate

    def told(task: Diagnosis, model: Any, request: Any) -> Any:
        asked.append(request)
        return generate(task, model, request)

    monkeypatch.setattr(Diagnosis, "generate", told)
    deployment.load(f"diagnosis:{register(1, str(home))}")
    assert asked == [{"n": 1}]


def test_a_light_change_of_the_configuration_changes_the_model(home):
    where = str(home)
    registry.promote(f"diagnosis:{register(1, where)}")
    register(2, where)
    server = deployment.TaskServer("diagnosis@production", poll_seconds=1000)
    asyncio.run(server.reconfigure({"model": "diagnosis:2"}))
    assert server._served.name["version"] == 2
    asyncio.run(server.reconfigure({"model": "diagnosis:9"}))  # keeps what it has
    assert server._served.name["version"] == 2
    server.close()


def test_a_wrong_model_is_refused_in_one_line_when_it_is_built(home):
    registry.promote(f"diagnosis:{register(1, str(home))}")
    with pytest.raises(UserError, match=r"no alias 'staging'; its aliases are: production"):
        deployment.build(deployment.Arguments(model="diagnosis@staging"))
    assert deployment.build(deployment.Arguments(model="diagnosis:1"))
    with pytest.raises(ValueError, match="modle"):
        deployment.Arguments.model_validate({"modle": "diagnosis:1"})


def test_serve_config_is_what_serve_takes():
    from ray._common.utils import import_attr
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    schema = ServeDeploySchema.model_validate(config)
    assert schema.http_options.host == "127.0.0.1"
    built = {"deployment": deployment, "ingress": ingress}
    for application in schema.applications:
        assert application.import_path is not None
        module = built[application.import_path.split(":")[0].rpartition(".")[2]]
        assert import_attr(application.import_path) is module.build  # type: ignore[attr-defined]
        module.Arguments.model_validate(application.args)  # type: ignore[attr-defined]
        names = {"deployment": "TaskDeployment", "ingress": "Ingress"}
        assert application.deployments[0].name == names[module.__name__.rpartition(".")[2]]


def test_a_call_that_fails_is_told_to_each_request_and_the_next_is_answered():

    async def go() -> list[Any]:
        calls = 0

        async def call(items: list[Any]) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise down("diagnosis", "it ended while it answered")
            return {"model": {}, "answers": items}

        batcher = backend.Batcher(call, 1)
        first = await asyncio.gather(*(batcher.ask([k]) for k in range(3)), return_exceptions=True)
        return [*first, await batcher.ask([7])]

    *failed, answered = asyncio.run(go())
    assert [getattr(error, "status", None) for error in failed] == [503] * 3
    assert len({id(error) for error in failed}) == 3
    assert answered["answers"] == [7]


def test_a_request_whose_client_left_is_not_computed():
    async def go() -> list[Any]:
        seen: list[Any] = []

        async def call(items: list[Any]) -> Any:
            seen.extend(items)
            await asyncio.sleep(0.05)
            return {"model": {}, "answers": items}

        batcher = backend.Batcher(call, 1)
        first = asyncio.create_task(batcher.ask(["a"] * 16))
        await asyncio.sleep(0.02)
        left = asyncio.create_task(batcher.ask(["left"]))
        stays = asyncio.create_task(batcher.ask(["stays"]))
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.gather(first, stays)
        return seen

    assert asyncio.run(go()) == ["a"] * 16 + ["stays"]


@pytest.mark.parametrize(
    "words", ["a.cif: chain is one of A; got 'B'", "a.cif holds nucleic acids"]
)
def test_a_sentence_about_an_upload_is_about_its_file(words):
    model = SimpleNamespace(task=SimpleNamespace(schema=Schema()))
    item = {"file": b"", "filename": "a.cif", "chain": "B"}
    assert deployment._field(model, item, words) == "file"
    assert deployment._field(model, item, "chain is a letter") == "chain"
