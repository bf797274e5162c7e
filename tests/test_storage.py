"""Local folders and S3 behave alike, and their faults are told in one sentence."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from aigc_ray import s3 as s3_store
from aigc_ray import storage
from aigc_ray.errors import UserError
from tests.s3 import Faulty, place, serving, use

__all__ = ["place"]  # a fixture


def test_what_is_written_is_read_listed_and_sized(place: str) -> None:
    storage.write_bytes(storage.join(place, "a", "one"), b"1")
    storage.write_json(storage.join(place, "a", "b", "two.json"), {"two": 2})
    storage.write_bytes(storage.join(place, "ab"), b"333")
    assert storage.read_bytes(storage.join(place, "a/one")) == b"1"
    assert storage.read_json(storage.join(place, "a/b/two.json")) == {"two": 2}
    assert storage.children(place) == ["a", "ab"]
    assert storage.children(storage.join(place, "a")) == ["b", "one"]
    assert storage.children(storage.join(place, "nothing")) == []
    assert list(storage.files(place)) == ["a/b/two.json", "a/one", "ab"]
    assert storage.size(storage.join(place, "ab")) == 3
    assert storage.size(place) == sum(storage.files(place).values()) == 3 + 1 + 15
    assert storage.name(storage.join(place, "a/b/")) == "b"


def test_a_file_and_a_folder_exist_but_a_prefix_of_a_name_does_not(place: str) -> None:
    storage.write_bytes(storage.join(place, "folder", "file"), b"")
    assert storage.exists(storage.join(place, "folder"))
    assert storage.exists(storage.join(place, "folder", "file"))
    assert not storage.exists(storage.join(place, "fold"))
    assert not storage.exists(storage.join(place, "folder", "fil"))


def test_delete_takes_all_that_is_below_and_nothing_beside_it(place: str) -> None:
    for name in ("gone/a", "gone/b/c", "gone-not"):
        storage.write_bytes(storage.join(place, name), b"x")
    storage.delete(storage.join(place, "gone"))
    storage.delete(storage.join(place, "gone"))
    assert list(storage.files(place)) == ["gone-not"]
    storage.delete(storage.join(place, "gone-not"))
    assert not storage.exists(storage.join(place, "gone-not"))


def test_roots_are_not_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "kept").touch()
    for root in ("/", "//", "~", "s3://bucket", "s3://bucket/"):
        with pytest.raises(UserError, match="not deleted"):
            storage.delete(root)
    assert (tmp_path / "kept").exists()


def test_a_missing_file_is_named(place: str) -> None:
    uri = storage.join(place, "nothing.json")
    for read in (storage.read_bytes, storage.read_json, storage.read_tagged, storage.size):
        with pytest.raises(storage.Missing, match=r"nothing\.json does not exist"):
            read(uri)


def test_a_file_over_the_limit_is_refused(place: str) -> None:
    uri = storage.join(place, "large")
    storage.write_bytes(uri, b"12345")
    assert storage.read_bytes(uri, limit=5) == b"12345"
    with pytest.raises(UserError, match="large has 5 bytes, more than the 4 allowed"):
        storage.read_bytes(uri, limit=4)


def test_json_that_is_not_is_refused_when_read_and_when_written(place: str) -> None:
    uri = storage.join(place, "broken.json")
    storage.write_bytes(uri, b"{")
    with pytest.raises(UserError, match=r"broken\.json is not JSON"):
        storage.read_json(uri)
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(uri, float("nan"))


def test_a_folder_travels_there_and_back_with_its_manifest_last(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    for name in ("MANIFEST.json", "a/b", "z"):
        storage.write_bytes(str(source / name), name.encode())
    (source / ".hidden").touch()
    kind = type(storage._place(place))
    written: list[str] = []
    put: Callable[..., None] = kind.put

    def noted(self: object, file: BinaryIO) -> None:
        written.append(Path(file.name).name)
        put(self, file)

    monkeypatch.setattr(kind, "put", noted)
    storage.upload(source, place)
    assert written == ["b", "z", "MANIFEST.json"]
    storage.download(place, tmp_path / "back")
    assert storage.files(str(tmp_path / "back")) == {"MANIFEST.json": 13, "a/b": 3, "z": 1}
    assert (tmp_path / "back/a/b").read_bytes() == b"a/b"
    with pytest.raises(storage.Missing, match="holds no files"):
        storage.download(storage.join(place, "nothing"), tmp_path / "back")


def test_a_download_stays_inside_its_folder(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"  # as the second half of "prefix//tmp/…/outside"
    monkeypatch.setattr(s3_store.Bucket, "files", lambda self: {str(outside): 1})
    with pytest.raises(UserError, match="would be written outside"):
        storage.download(f"{s3}/prefix", tmp_path / "inside")
    monkeypatch.setattr(s3_store.Bucket, "files", lambda self: {"../outside": 1})
    with pytest.raises(UserError, match="holds no files"):  # a hidden name
        storage.download(f"{s3}/prefix", tmp_path / "inside")


def test_only_one_of_many_creates_the_same_file(place: str) -> None:
    uri = storage.join(place, "claim")
    storage.create(uri, b"first")
    with pytest.raises(storage.Exists, match="claim already exists"):
        storage.create(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert storage.children(place) == ["claim"]  # the lock is not seen


def test_replace_wants_the_tag_of_what_is_there(place: str) -> None:
    uri = storage.join(place, "alias.json")
    with pytest.raises(storage.Changed):
        storage.replace(uri, b"0", "tag of nothing")
    storage.create(uri, b"1")
    data, tag = storage.read_tagged(uri)
    storage.replace(uri, data + b"2", tag)
    with pytest.raises(storage.Changed, match=r"alias\.json was changed by another writer"):
        storage.replace(uri, b"3", tag)
    assert storage.read_bytes(uri) == b"12"


def test_a_hundred_local_increments_by_five_threads_lose_none(tmp_path: Path) -> None:
    # Not on moto, whose conditional write looks first and writes later.
    uri = str(tmp_path / "count")
    storage.create(uri, b"0")

    def increment() -> None:
        for _ in range(20):
            while True:
                data, tag = storage.read_tagged(uri)
                try:
                    storage.replace(uri, str(int(data) + 1).encode(), tag)
                    break
                except storage.Changed:
                    pass

    together([increment] * 5)
    assert storage.read_bytes(uri) == b"100"


def test_pyarrow_reads_the_same_bytes_and_its_pickle_holds_no_keys(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    storage.write_bytes(storage.join(place, "file"), b"bytes")
    filesystem, path = storage.filesystem(place)
    pickled = pickle.dumps(filesystem)
    assert b"a-secret" not in pickled
    with pickle.loads(pickled).open_input_stream(f"{path}/file") as stream:
        assert stream.read() == b"bytes"


@pytest.mark.parametrize("fault", ["fsync", "write"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")
    if fault == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=rf"^no space is left for {uri}; .*unchanged$"):
        storage.write_bytes(uri, b"new")
    with pytest.raises(OSError, match=rf"^no space is left for {uri}; .*unchanged$"):
        storage.copy(uri, Path(uri))
    assert storage.read_bytes(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_crash_before_the_end_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (0, "reset")]
)
def test_a_store_that_fails_twice_is_asked_a_third_time(
    status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for call in (storage.read_bytes, lambda uri: storage.write_bytes(uri, b"data")):
        with serving(Faulty(status, code, failures=2)) as store:
            use(monkeypatch, store.endpoint)
            call("s3://bucket/key")
            assert (store.seen, store.data) == (3, b"data")
    assert len(waits) == 4 and len(set(waits)) == 4  # random waits, so that clients spread out


def test_pyarrow_too_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Faulty(503, "SlowDown", failures=2)) as store:
        use(monkeypatch, store.endpoint)
        filesystem, path = storage.filesystem("s3://bucket/key")
        with filesystem.open_input_stream(path) as stream:
            assert stream.read() == b"data"
        assert store.seen > 2


def test_an_answer_cut_short_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Faulty(0, "cut", failures=2)) as store:
        use(monkeypatch, store.endpoint)
        assert storage.read_bytes("s3://bucket/key") == b"data"
        assert store.seen == 3


def test_a_conditional_write_whose_answer_was_lost_has_succeeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lost(Faulty):
        """Keeps the first write but loses the answer; the retry then meets that write."""

        def fail(self, handler: object) -> None:
            if self.seen == 2:
                self.status, self.code = 412, "PreconditionFailed"
            super().fail(handler)  # type: ignore[arg-type]

    with serving(Lost(0, "reset", failures=2, data=b"mine")) as store:
        use(monkeypatch, store.endpoint)
        storage.create("s3://bucket/claim", b"mine")
    with serving(Lost(0, "reset", failures=2, data=b"another's")) as store:
        use(monkeypatch, store.endpoint)
        with pytest.raises(storage.Exists):
            storage.create("s3://bucket/claim", b"mine")


def test_a_store_that_stays_down_is_not_called_the_users_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with serving(Faulty(503, "SlowDown", failures=99)) as store:
        use(monkeypatch, store.endpoint)
        with pytest.raises(
            OSError, match=r"s3://bucket/key: .* answered 503 SlowDown told to fail"
        ):
            storage.read_bytes("s3://bucket/key")
        assert store.seen == s3_store.ATTEMPTS


@pytest.mark.parametrize(
    "call",
    [
        storage.read_bytes,
        storage.children,
        storage.exists,
        storage.files,
        storage.delete,
        lambda uri: storage.write_bytes(uri, b""),
        lambda uri: storage.create(uri, b""),
    ],
)
def test_a_missing_bucket_is_named(call: Callable[[str], object], s3: str) -> None:
    with pytest.raises(UserError, match="the bucket no-such-bucket does not exist at http"):
        call("s3://no-such-bucket/key")


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_refused_keys_are_told(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Faulty(403, code, failures=99)) as store:
        use(monkeypatch, store.endpoint)
        for call in (storage.read_bytes, storage.children):
            with pytest.raises(
                UserError, match=rf"refuses the keys for s3://bucket/key \({code}\)"
            ):
                call("s3://bucket/key")
        with pytest.raises(UserError, match="refuses the keys"):
            storage.exists("s3://bucket/key")


def test_no_keys_at_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="s3://bucket/key needs keys: set AWS_ACCESS_KEY_ID"):
        storage.read_bytes("s3://bucket/key")


def test_an_endpoint_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    use(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"http://127.0.0.1:1 does not answer.*AWS_ENDPOINT_URL"):
        storage.read_bytes("s3://bucket/key")


def test_an_endpoint_that_takes_the_connection_and_is_silent_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(s3_store, "READ_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        use(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            storage.read_bytes("s3://bucket/key")
    assert time.monotonic() - start < 5
    s3_store.client.cache_clear()  # the next test's port may be the same


def test_what_is_no_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("gs://bucket/key", "s3://", "s3:///key"):
        with pytest.raises(UserError, match="write a local path or s3://bucket/prefix"):
            storage.exists(uri)
    use(monkeypatch, "store.example")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL is not an http"):
        storage.exists("s3://bucket/key")
    use(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(UserError, match="Invalid bucket name"):
        storage.exists("s3://no bucket/key")


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*(Not a directory|File exists)"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")
    with pytest.raises(UserError, match="Is a directory"):
        storage.read_bytes(str(tmp_path))


def test_home_is_absolute_and_a_job_may_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIGC_HOME", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert storage.home() == str(tmp_path / "aigc-home")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match="'aigc-home', a relative path"):
        storage.home()
    for uri in ("s3://bucket/home", "/data/home"):
        monkeypatch.setenv("AIGC_HOME", uri)
        assert storage.home() == uri


def test_importing_loads_no_large_library() -> None:
    program = (
        "import sys, aigc_ray.storage, aigc_ray.registry, aigc_ray.catalogue\n"
        "print([name for name in ('torch', 'ray', 'boto3', 'pyarrow') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.stdout.strip(), found.stderr) == ("[]", "")


def together(calls: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
