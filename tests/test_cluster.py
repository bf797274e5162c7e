"""A cluster does what this machine does: a submitted job trains the same model, then serves it."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import yaml

from aigc_ray import registry
from aigc_ray.cluster import refuse_relative_home
from aigc_ray.train import train
from tests.service import png
from tests.tiny import TINY, ingested

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SETTINGS = TINY | {"steps": 8, "num_workers": 2}

pytestmark = pytest.mark.timeout(600)


# --- the files ------------------------------------------------------------------------------------


def test_cluster_yaml_is_what_ray_takes():
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (ROOT / "cluster.yaml").read_text()
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0  # nothing runs beside the drivers
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text)


def test_serve_config_is_what_ray_takes():
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    routes = {
        one.name: one.route_prefix for one in ServeDeploySchema.model_validate(config).applications
    }
    assert routes.pop("ingress") == "/"
    assert routes and set(routes.values()) == {None}  # tasks are reached by the ingress only


def test_a_submitted_job_with_a_relative_home_ends_in_one_sentence(monkeypatch, capsys):
    refuse_relative_home()
    monkeypatch.setenv("AIGC_HOME", "here")
    refuse_relative_home()  # outside of a job a relative home is as good as another
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(SystemExit) as ended:
        refuse_relative_home()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "AIGC_HOME is 'here', a relative path" in told and told.count("\n") == 1


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_every_job_takes_the_arguments_of_its_verb(job, tmp_path):
    verb = ["models", "promote"] if job.stem == "promote" else [job.stem]
    helped = [
        subprocess.run(
            [sys.executable, *words, "--help"],
            cwd=tmp_path,
            env=os.environ | {"AIGC_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for words in ([str(job)], ["-m", "aigc_ray", *verb])
    ]
    assert helped[0] == helped[1] and "usage: aigc-ray" in helped[0]


# --- a cluster ------------------------------------------------------------------------------------


class Cluster(NamedTuple):
    dashboard: str  # where jobs are submitted and applications deployed
    home: str
    environment: dict[str, str]  # of whoever speaks to it
    folder: Path


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What `condition` returns as soon as it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"it did not happen within {seconds} s")


def call(cluster: Cluster, *words: str, code: int = 0) -> str:
    """A Ray command against the cluster; what it printed."""
    command = [str(BIN / words[0]), *words[1:]]
    done = subprocess.run(
        command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def submit(cluster: Cluster, *words: str, code: int = 0, **variables: str) -> str:
    """Run `python jobs/…` on the cluster as the README says; its output."""
    more = ["--runtime-env-json", json.dumps({"env_vars": variables})] if variables else []
    address = ["--address", cluster.dashboard, "--working-dir", "."]
    return call(cluster, "ray", "job", "submit", *address, *more, "--", "python", *words, code=code)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A head on ports of its own with token authentication, as `ray start` makes it."""
    folder = Path(tempfile.mkdtemp(prefix="aigc-", dir="/tmp"))  # short, for the sockets' paths
    home = str(tmp_path_factory.mktemp("home"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "HOME": str(folder),  # where Ray would leave a token
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": ".5",
        "AIGC_HOME": home,
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    dashboard = port()
    ports = {
        "port": port(),
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": port(),
        "ray-client-server-port": port(),
    }
    words = [f"--{name}={number}" for name, number in ports.items()]
    words += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    words += ["--num-cpus=8", "--object-store-memory=300000000", "--disable-usage-stats"]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", *words],
            env=environment,
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{dashboard}"
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    try:
        wait_for(lambda: _status(f"{address}/api/jobs/", headers=token) == 200)
        yield Cluster(address, home, environment, folder)
    finally:
        _end(head, folder)


def _status(url: str, **more: Any) -> int:
    try:
        return httpx.get(url, timeout=10, **more).status_code
    except httpx.HTTPError:
        return 0


def _ready(url: str) -> list[str] | None:
    """The tasks that do not answer yet; None while nothing does."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=30)
    except httpx.HTTPError:
        return None
    return answer.json().get("tasks", []) if answer.status_code in (200, 503) else None


def _end(head: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill the head and what it started, and nothing else: `ray stop` would end all of Ray."""
    processes = psutil.Process(head.pid).children(recursive=True)
    for one in psutil.process_iter(["cmdline"]):  # children of those that are gone
        if any(str(folder) in word for word in one.info["cmdline"] or ()):
            processes.append(one)
    head.kill()
    for one in processes:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    head.wait()
    psutil.wait_procs(processes, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory, ray) -> str:
    return ingested(tmp_path_factory.mktemp("data"))


def _weights(model: str, home: str) -> bytes:
    return (registry.fetch(model, home) / "weights.safetensors").read_bytes()


def test_a_cluster_trains_and_serves_what_this_machine_would(cluster, data, home, tmp_path):
    # Without the token no one submits.
    assert httpx.get(f"{cluster.dashboard}/api/jobs/").status_code == 401

    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    told = submit(cluster, "jobs/train.py", "diagnosis", "--data", data, *settings, "--json")
    assert '"model": "diagnosis:1"' in told
    here = train("diagnosis", data, SETTINGS)
    assert _weights("diagnosis:1", cluster.home) == _weights(here["model"], str(home))

    told = submit(cluster, "jobs/promote.py", "diagnosis:1", code=1, AIGC_HOME="here")
    assert "AIGC_HOME is 'here', a relative path" in told and "Traceback" not in told
    promoted = registry.promote("diagnosis:1", home=cluster.home)

    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port()
    written = tmp_path / "serve_config.yaml"
    written.write_text(yaml.safe_dump(config))
    call(cluster, "serve", "deploy", str(written), "--address", cluster.dashboard)
    url = f"http://127.0.0.1:{config['http_options']['port']}"
    # Some have no promoted model: each takes down only itself, and who is not ready is named.
    wait_for(lambda: _ready(url) == ["prognosis", "dna", "proteins"])
    image = base64.b64encode(png(0, (28, 28))).decode()
    answer = httpx.post(
        f"{url}/v1/diagnosis/predict", json={"items": [{"image": image}]}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"]["version"] == promoted["version"] == 1
    assert len(body["model"]["sha256"]) == 64
