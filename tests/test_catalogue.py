"""Data sets arrive by name, unharmed, from the nearest place that has them."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aigc_ray import catalogue, storage
from aigc_ray.errors import UserError
from aigc_ray.tasks import TASKS
from aigc_ray.tasks.prognosis.task import Prognosis
from tests.s3 import Faulty, serving

DATA = b"a small data set"
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()


def listed(monkeypatch: pytest.MonkeyPatch, *copies: dict[str, Any]) -> None:
    """A catalogue with one data set, `small`, of one file."""
    entries = {"small": {"name": "small", "files": [list(copies)]}}
    monkeypatch.setattr(catalogue, "_entries", lambda: entries)


def official(url: str = "http://127.0.0.1:1/small.npz", **changes: Any) -> dict[str, Any]:
    copy = {"file": "small.npz", "url": url, "mirror": "images/small.npz", "sha256": SHA256}
    return copy | changes


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/small.npz"


def test_every_entry_says_where_it_is_from_and_under_what_terms() -> None:
    assert {"pneumoniamnist", "retinamnist", "gbsg2"} <= set(catalogue.names())
    for name in catalogue.names():
        entry = catalogue.entry(name)
        assert entry["task"] in TASKS
        assert all(entry[key] for key in ("licence", "citation", "note", "files"))
        for copies in entry["files"]:
            assert all(copy.keys() & {"url", "mirror", "package"} for copy in copies)
            assert all(copy.get("url", "https://").startswith("https://") for copy in copies)
            assert all("sha256" in copy or "md5" in copy for copy in copies)
            assert all("sha256" in copy for copy in copies if "mirror" in copy)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match="no data set 'mnist'; there are: bace, bbbp, "):
        catalogue.fetch("mnist")


def test_a_set_inside_a_package_comes_with_what_its_columns_are(tmp_path: Path) -> None:
    path = catalogue.fetch("gbsg2", str(tmp_path))
    task, sources = Prognosis(columns=str(path.parent / catalogue.COLUMNS)).survey(str(path))
    assert task.schema["tgrade"].ordered
    assert sum(source["rows"] for source in sources) == 686


def test_a_package_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, {"file": "a.csv", "package": "nowhere_at_all/a.csv", "sha256": SHA256})
    with pytest.raises(UserError, match="the package nowhere_at_all, which is not installed"):
        catalogue.fetch("small", str(tmp_path))


def test_a_file_at_home_is_used_without_any_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, official())
    path = tmp_path / "home/data/raw/small/small.npz"
    storage.write_bytes(str(path), DATA)
    monkeypatch.setattr(catalogue, "urlopen", None)
    assert catalogue.fetch("small") == path


def test_a_damaged_file_at_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, official())
    storage.write_bytes(str(tmp_path / "home/data/raw/small/small.npz"), b"other")
    wrong = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UserError, match=rf"small\.npz \(delete it.*{wrong}; right is .*{SHA256}"):
        catalogue.fetch("small")


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_the_mirror_comes_before_the_address(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = f"{request.getfixturevalue('s3')}/mirror" if kind == "s3" else str(tmp_path / "mirror")
    storage.write_bytes(storage.join(mirror, "images/small.npz"), DATA)
    listed(monkeypatch, official())
    monkeypatch.setenv("AIGC_DATA_MIRROR", mirror)
    monkeypatch.setattr(catalogue, "urlopen", None)
    path = catalogue.fetch("small")
    assert path == tmp_path / "home/data/raw/small/small.npz"
    assert path.read_bytes() == DATA
    storage.delete(mirror)
    assert catalogue.fetch("small") == path


def test_a_wrong_file_in_the_mirror_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(str(tmp_path / "mirror/images/small.npz"), b"other")
    listed(monkeypatch, official())
    monkeypatch.setenv("AIGC_DATA_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(UserError, match=rf"{hashlib.sha256(b'other').hexdigest()}.*{SHA256}"):
        catalogue.fetch("small")
    assert list((tmp_path / "home/data/raw/small").iterdir()) == []


def test_the_address_is_asked_last_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("AIGC_DATA_MIRROR", str(tmp_path / "mirror"))
    with serving(Faulty(0, "", failures=0, data=DATA)) as store:
        listed(monkeypatch, official(f"{store.endpoint}/small.npz", bytes=len(DATA)))
        assert catalogue.fetch("small").read_bytes() == DATA
        assert catalogue.fetch("small").read_bytes() == DATA
        assert store.seen == 1
    assert capsys.readouterr().out == ""


def test_any_copy_in_the_catalogue_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"file": "old.npz", "mirror": "old.npz", "sha256": "0" * 64}
    with serving(Faulty(0, "", failures=0, data=DATA)) as store:
        copy = {"file": "small.npz", "url": f"{store.endpoint}/small.npz", "md5": MD5}
        listed(monkeypatch, copy, other)
        assert catalogue.fetch("small").name == "small.npz"


def test_md5_does_not_count_where_sha256_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Faulty(0, "", failures=0, data=DATA)) as store:
        listed(monkeypatch, official(f"{store.endpoint}/small.npz", md5=MD5, sha256="0" * 64))
        with pytest.raises(UserError, match="is not the file it should be"):
            catalogue.fetch("small")


def test_with_a_home_in_s3_the_file_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(str(tmp_path / "mirror/images/small.npz"), DATA)
    listed(monkeypatch, official())
    monkeypatch.setenv("AIGC_DATA_MIRROR", str(tmp_path / "mirror"))
    path = catalogue.fetch("small", home="s3://bucket/home")
    assert path == tmp_path / "cache/aigc_ray/data/raw/small/small.npz"


def test_a_silent_address_is_given_up_in_time(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, official(silent))
    start = time.monotonic()
    with pytest.raises(
        catalogue.Unreachable, match=r"could not be reached within 0\.3 s: put small"
    ):
        catalogue.fetch("small", timeout=0.3)
    assert time.monotonic() - start < 2


def test_a_name_server_that_hangs_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    listed(monkeypatch, official("http://data.example/small.npz"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hang.wait(3))
    start = time.monotonic()
    with pytest.raises(catalogue.Unreachable):
        catalogue.fetch("small", timeout=0.2)
    assert time.monotonic() - start < 2


def test_a_refused_connection_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, official())
    with pytest.raises(catalogue.Unreachable, match="AIGC_DATA_MIRROR"):
        catalogue.fetch("small")


def test_an_address_that_answers_with_an_error_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Faulty(404, "NoSuchKey", failures=99)) as store:
        listed(monkeypatch, official(f"{store.endpoint}/small.npz"))
        with pytest.raises(UserError, match=r"small\.npz answered 404"):
            catalogue.fetch("small")


def test_an_endless_file_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Faulty(0, "", failures=0, data=DATA * 1000)) as store:
        listed(monkeypatch, official(f"{store.endpoint}/small.npz", bytes=len(DATA)))
        with pytest.raises(UserError, match="sends more than the 16 bytes"):
            catalogue.fetch("small")
    assert list((tmp_path / "home/data/raw/small").iterdir()) == []


def test_several_files_are_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [[official(file=name, mirror=name)] for name in ("train.csv", "test.csv")]
    monkeypatch.setattr(catalogue, "_entries", lambda: {"two": {"files": files}})
    monkeypatch.setenv("AIGC_DATA_MIRROR", str(tmp_path / "mirror"))
    for name in ("train.csv", "test.csv"):
        storage.write_bytes(str(tmp_path / "mirror" / name), DATA)
    folder = catalogue.fetch("two")
    assert sorted(path.name for path in folder.iterdir()) == ["test.csv", "train.csv"]
