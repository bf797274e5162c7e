"""Versions are immutable and verified, aliases move atomically, and the card tells the truth."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import safetensors.torch

from aigc_ray import manifest, registry, report, storage
from aigc_ray.card import card
from aigc_ray.errors import UserError
from aigc_ray.model import Model
from tests.s3 import place

__all__ = ["place"]  # a fixture


RATES = ("copy_rate", "plain_copy_rate")


def described(**changes: Any) -> dict[str, Any]:
    model = {
        "task": "diagnosis",
        "created": "2026-01-02T03:04:05+00:00",
        "schema": [],
        "configuration": {"seed": 0},
        "objective": ["balanced_accuracy", "max"],
        "data": {
            "uri": "s3://bucket/data",
            "name": "phantoms",
            "sha256": "ab" * 32,
            "rows": {"train": 512, "val": 64},
            "licence": "CC0",
            "note": "small",
            "synthetic": False,
        },
        "metrics": {"val": {"balanced_accuracy": 0.91234}, "test": {"balanced_accuracy": 0.9}},
        "seeds": [0, 1],
        "code_version": "0.1",
        "training": {"steps": 10, "workers": 2, "seconds": 3.5, "rows_per_second": 100.0},
        "intended_use": "Research on small images.",
        "limits": ["Only 28x28 images."],
        "calibration": None,
    }
    return model | changes


def trained(folder: Path, weights: bytes = b"weights", **changes: Any) -> Path:
    storage.write_json(str(folder / "model.json"), described(**changes))
    storage.write_bytes(str(folder / "weights-0.safetensors"), weights)
    return folder


def flip(uri: str, position: int = -1, mask: int = 1) -> None:
    data = bytearray(storage.read_bytes(uri))
    data[position] ^= mask
    storage.write_bytes(uri, bytes(data))


def registered(place: str, tmp_path: Path, count: int) -> None:
    for number in range(1, count + 1):
        folder = trained(tmp_path / f"run{number}", f"weights {number}".encode())
        assert registry.register("diagnosis", folder, place) == number


def test_a_registered_model_is_found_by_number_alias_and_address(
    place: str, tmp_path: Path
) -> None:
    registered(place, tmp_path, 2)
    registry.promote("diagnosis:1", home=place)
    by_number = registry.resolve("diagnosis:1", place)
    uri = storage.join(place, "models", "diagnosis", "1")
    assert by_number == ("diagnosis", 1, uri, manifest.sha256_of(manifest.read(uri)))
    assert registry.resolve("diagnosis@production", place) == by_number
    assert registry.resolve(uri) == by_number._replace(version=None)
    assert registry.resolve("diagnosis:2", place).sha256 != by_number.sha256


def test_fetch_gives_the_files_as_they_were_registered(place: str, tmp_path: Path) -> None:
    registered(place, tmp_path, 1)
    folder = registry.fetch("diagnosis:1", place)
    assert (folder / "weights-0.safetensors").read_bytes() == b"weights 1"
    assert "This is not a medical device." in (folder / "card.md").read_text()
    assert registry.fetch("diagnosis:1", place) == folder


@pytest.mark.parametrize(
    "name", ["weights-0.safetensors", "model.json", "card.md", "MANIFEST.json"]
)
def test_a_flipped_byte_is_found_and_refused(name: str, place: str, tmp_path: Path) -> None:
    registered(place, tmp_path, 1)
    flip(f"{place}/models/diagnosis/1/{name}")
    for call in (registry.fetch, lambda model, home: registry.promote(model, home=home)):
        with pytest.raises(UserError, match=name):
            call("diagnosis:1", place)
    assert storage.children(f"{place}/models/diagnosis/aliases") == []


def test_every_single_flipped_byte_of_a_small_folder_is_found(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"xyz")
    sealed = manifest.seal(tmp_path)
    for path in (tmp_path / "a", tmp_path / "MANIFEST.json"):
        for position, mask in product(range(path.stat().st_size), (1, 3)):
            flip(str(path), position, mask)  # by 3 a new line becomes a tab: still good JSON
            with suppress(UserError):
                assert manifest.sha256_of(manifest.verify(tmp_path)) != manifest.sha256_of(sealed)
            flip(str(path), position, mask)
    assert manifest.verify(tmp_path) == sealed


def test_a_missing_and_a_truncated_file_are_named(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        storage.write_bytes(str(tmp_path / name), b"12345")
    manifest.seal(tmp_path)
    (tmp_path / "b/c").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"b/c has 4 bytes; it was 5 long"):
        manifest.verify(tmp_path)
    (tmp_path / "b/c").unlink()
    with pytest.raises(UserError, match=r"b/c is missing"):
        manifest.verify(tmp_path)


def test_a_manifest_may_not_point_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"1")
    (tmp_path / "in").mkdir()
    entry = {"sha256": "", "bytes": 1}
    for name in ("../secret", "/etc/passwd"):
        data = manifest._canonical({"files": {name: entry}})
        (tmp_path / "in" / "MANIFEST.json").write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            manifest.verify(tmp_path / "in")


def test_another_models_files_under_a_version_are_refused(place: str, tmp_path: Path) -> None:
    registered(place, tmp_path, 2)
    registry.promote("diagnosis:1", home=place)
    storage.upload(tmp_path / "run2", f"{place}/models/diagnosis/1")
    for model in ("diagnosis:1", "diagnosis@production"):
        with pytest.raises(UserError, match="is not the one that"):
            registry.fetch(model, place)


def test_an_alias_with_a_flipped_version_is_refused(place: str, tmp_path: Path) -> None:
    registered(place, tmp_path, 3)
    registry.promote("diagnosis:2", home=place)
    uri = f"{place}/models/diagnosis/aliases/production.json"
    flip(uri, storage.read_bytes(uri).index(b"2"))
    with pytest.raises(UserError, match=r"production\.json is damaged"):
        registry.fetch("diagnosis@production", place)


def test_a_damaged_copy_in_the_cache_is_fetched_again(s3: str, tmp_path: Path) -> None:
    home = f"{s3}/damaged-copy"
    registered(home, tmp_path, 1)
    folder = registry.fetch("diagnosis:1", home)
    assert folder.is_relative_to(storage.cache())
    flip(str(folder / "weights-0.safetensors"))
    assert registry.fetch("diagnosis:1", home) == folder
    assert (folder / "weights-0.safetensors").read_bytes() == b"weights 1"
    assert storage.children(str(folder.parent)) == [folder.name]


def test_a_good_copy_in_the_cache_is_not_fetched_again(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = f"{s3}/good-copy"
    registered(home, tmp_path, 1)
    folder = registry.fetch("diagnosis:1", home)
    monkeypatch.setattr(storage, "download", None)
    assert registry.fetch("diagnosis:1", home) == folder


def test_promotion_looks_at_the_original_not_at_the_cache(s3: str, tmp_path: Path) -> None:
    home = f"{s3}/original"
    registered(home, tmp_path, 1)
    registry.fetch("diagnosis:1", home)
    flip(f"{home}/models/diagnosis/1/weights-0.safetensors")
    with pytest.raises(UserError, match="weights-0"):
        registry.promote("diagnosis:1", home=home)


def test_replicas_that_fetch_together_all_get_the_whole_model(s3: str, tmp_path: Path) -> None:
    home = f"{s3}/together"
    registered(home, tmp_path, 1)
    folders: list[Path] = []
    together([lambda: folders.append(registry.fetch("diagnosis:1", home))] * 4)
    assert len(folders) == 4 and len(set(folders)) == 1
    manifest.verify(folders[0])


def test_two_that_register_together_get_different_versions(tmp_path: Path) -> None:
    # A local home, since moto's conditional write is not atomic.
    home, versions = str(tmp_path / "home"), []
    folders = [trained(tmp_path / f"run{n}", bytes([n])) for n in range(6)]

    def register(folder: Path) -> None:
        versions.append(registry.register("diagnosis", folder, home))

    together([partial(register, folder) for folder in folders])
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]
    weights = {registry.fetch(f"diagnosis:{n}", home) / "weights-0.safetensors" for n in versions}
    assert {path.read_bytes() for path in weights} == {bytes([n]) for n in range(6)}


def test_a_claimed_number_is_not_given_again(place: str, tmp_path: Path) -> None:
    registered(place, tmp_path, 1)
    storage.create(f"{place}/models/diagnosis/claims/2", b"{}")  # a writer that died after it
    storage.write_bytes(f"{place}/models/diagnosis/2/model.json", b"{}")
    assert registry.register("diagnosis", tmp_path / "run1", place) == 3
    assert [model["version"] for model in registry.models(place)] == [3, 1]
    with pytest.raises(UserError, match=r"no version '2'; its versions are: 1, 3"):
        registry.resolve("diagnosis:2", place)


def test_a_version_cut_short_before_its_manifest_is_not_there(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(place, tmp_path, 1)
    kind = type(storage._place(place))
    put: Callable[..., None] = kind.put

    def cut(self: object, file: BinaryIO) -> None:
        if getattr(file, "name", "").endswith("MANIFEST.json"):
            raise ConnectionResetError
        put(self, file)

    with monkeypatch.context() as patch, pytest.raises(ConnectionResetError):
        patch.setattr(manifest, "seal", lambda folder: manifest.read(str(folder)))
        patch.setattr(kind, "put", cut)
        registry.register("diagnosis", tmp_path / "run1", place)
    arrived = storage.files(f"{place}/models/diagnosis/2")
    assert list(arrived) == ["card.md", "model.json", "weights-0.safetensors"]
    assert [model["version"] for model in registry.models(place)] == [1]


def test_a_claim_lost_between_listing_and_writing_moves_on(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(place, tmp_path, 2)
    monkeypatch.setattr(storage, "children", lambda uri: [])
    assert registry.register("diagnosis", tmp_path / "run1", place) == 3


def test_rollback_walks_back_through_the_promotions(place: str, tmp_path: Path) -> None:
    registered(place, tmp_path, 3)
    for number in (1, 2, 3):
        state = registry.promote(f"diagnosis:{number}", by="ada", home=place)
    assert (state["version"], state["previous"]) == (3, 2)
    assert registry.promote("diagnosis:3", home=place) == state  # already there: nothing changes
    state = registry.rollback("diagnosis", by="bob", home=place)
    assert (state["version"], state["previous"]) == (2, 1)
    assert registry.resolve("diagnosis@production", place).version == 2
    state = registry.rollback("diagnosis", home=place)
    assert (state["version"], state["previous"]) == (1, None)
    with pytest.raises(UserError, match="no earlier version"):
        registry.rollback("diagnosis", home=place)
    history = [(entry["by"], entry["from"], entry["version"]) for entry in state["history"]]
    assert history[:4] == [("ada", None, 1), ("ada", 1, 2), ("ada", 2, 3), ("bob", 3, 2)]
    assert all(entry["when"] for entry in state["history"])


def test_a_rollback_to_damaged_files_is_refused(place: str, tmp_path: Path) -> None:
    registered(place, tmp_path, 2)
    for number in (1, 2):
        registry.promote(f"diagnosis:{number}", home=place)
    flip(f"{place}/models/diagnosis/1/weights-0.safetensors")
    with pytest.raises(UserError, match="weights-0"):
        registry.rollback("diagnosis", home=place)
    assert registry.resolve("diagnosis@production", place).version == 2


def test_a_generator_that_copies_is_registered_but_never_promoted(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    rates = {name: {"value": 0.31, "low": 0.2, "high": 0.4} for name in RATES}
    for copies in (True, False):
        folder = trained(tmp_path / str(copies), generation={"copies": copies} | rates)
        registry.register("diagnosis", folder, home)
    with pytest.raises(UserError, match=r"diagnosis:1 copies: 31\.0 % of what it generates"):
        registry.promote("diagnosis:1", home=home)
    assert "cannot be promoted" in registry.show("diagnosis:1", home)["card"]
    registry.promote("diagnosis:2", home=home)
    assert registry.resolve("diagnosis@production", home).version == 2


def test_promotions_at_the_same_time_are_all_recorded(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    registered(home, tmp_path, 4)
    together([partial(registry.promote, f"diagnosis:{n}", home=home) for n in (1, 2, 3, 4)])
    uri = f"{home}/models/diagnosis/aliases/production.json"
    history = storage.read_json(uri)["history"]
    assert sorted(entry["version"] for entry in history) == [1, 2, 3, 4]
    chain = [entry["version"] for entry in history]
    assert [entry["from"] for entry in history] == [None, *chain[:-1]]


def test_a_promotion_that_meets_another_tries_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(place, tmp_path, 3)
    registry.promote("diagnosis:1", home=place)
    replace, calls = storage.replace, []

    def late(uri: str, data: bytes, tag: str) -> None:
        calls.append(uri)
        if len(calls) == 1:  # another writer is faster
            registry.promote("diagnosis:2", home=place)
        replace(uri, data, tag)

    monkeypatch.setattr(storage, "replace", late)
    state = registry.promote("diagnosis:3", home=place)
    assert [entry["version"] for entry in state["history"]] == [1, 2, 3]


def test_the_list_shows_every_version_and_says_which_is_damaged(place: str, tmp_path: Path) -> None:
    assert registry.models(place) == []
    registered(place, tmp_path, 2)
    registry.promote("diagnosis:1", alias="staging", home=place)
    flip(f"{place}/models/diagnosis/2/model.json")
    second, first = registry.models(place)
    assert first == {
        "task": "diagnosis",
        "version": 1,
        "aliases": ["staging"],
        "created": "2026-01-02T03:04:05+00:00",
        "sha256": registry.resolve("diagnosis:1", place).sha256,
        "objective": {"name": "balanced_accuracy", "split": "val", "value": 0.91234},
    }
    assert (second["version"], second["aliases"]) == (2, [])
    assert "model.json is damaged" in second["damaged"]


def test_show_tells_all_and_is_json(place: str, tmp_path: Path) -> None:
    registered(place, tmp_path, 1)
    registry.promote("diagnosis:1", home=place)
    shown = json.loads(json.dumps(registry.show("diagnosis@production", place)))
    assert (shown["task"], shown["version"], shown["aliases"]) == ("diagnosis", 1, ["production"])
    assert shown["model"] == described()
    assert shown["card"].startswith("# diagnosis")
    assert set(shown["files"]) == {"model.json", "card.md", "weights-0.safetensors"}


def test_unknown_names_list_what_exists(place: str, tmp_path: Path) -> None:
    registered(place, tmp_path, 1)
    registry.promote("diagnosis:1", alias="staging", home=place)
    cases = {
        "prognosis@production": "no model of task 'prognosis' .* registered are: diagnosis",
        "diagnosis:9": "no version '9'; its versions are: 1",
        "diagnosis:new": "no version 'new'; its versions are: 1",
        "diagnosis@production": "no alias 'production'; its aliases are: staging",
        "diagnosis": "write TASK@ALIAS, TASK:VERSION or the address",
        f"{place}/models/diagnosis": "write TASK@ALIAS, TASK:VERSION or the address",
    }
    for model, sentence in cases.items():
        with pytest.raises(UserError, match=sentence):
            registry.resolve(model, place)
    with pytest.raises(UserError, match="not a registered version"):
        registry.promote(f"{place}/models/diagnosis/1", home=place)
    with pytest.raises(UserError, match="an alias is a word"):
        registry.promote("diagnosis:1", alias="../claims/1", home=place)
    with pytest.raises(UserError, match=r"no earlier version.*aliases are: staging"):
        registry.rollback("diagnosis", home=place)


def test_an_incomplete_folder_is_not_registered(tmp_path: Path) -> None:
    home, folder = str(tmp_path / "home"), tmp_path / "run"
    with pytest.raises(UserError, match=r"model\.json does not exist"):
        registry.register("diagnosis", folder, home)
    trained(folder)
    with pytest.raises(UserError, match="is of task 'diagnosis', not dna"):
        registry.register("dna", folder, home)
    (folder / "weights-0.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        registry.register("diagnosis", folder, home)
    assert registry.models(home) == []


def test_the_card_says_what_the_model_is_not_and_how_it_fared() -> None:
    text = card(described(limits=["This is not a medical device.", "Only | small images."]))
    assert text.count("This is not a medical device.") == 1
    assert "must not be used to diagnose" in text
    assert "| balanced_accuracy | 0.9123 | 0.9 |" in text
    assert "- Only \\| small images." in text
    assert "train 512, val 64" in text and "ab" * 32 in text
    assert "not calibrated" in text and "Seeds: 0, 1." in text
    assert "training data are phantoms" not in text


def test_the_card_of_phantoms_says_so_first() -> None:
    text = card(described(data=described()["data"] | {"synthetic": True}))
    first = text.split("\n\n")[1]
    assert first.startswith("The training data are phantoms")


def test_the_card_needs_no_key_at_all() -> None:
    whole = described()
    for gone in [None, *whole]:
        text = card({} if gone is None else {k: v for k, v in whole.items() if k != gone})
        assert text.count("This is not a medical device.") == 1 and "None" not in text
    assert "None" not in card(dict.fromkeys(whole))


def together(calls: list[Callable[[], object]]) -> None:
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_model_of_other_networks_says_which_version_wrote_it(home, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(registry.fetch("molecules@pretrained"), folder)
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    del weights["0.generator.head.bias"]
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    (folder / manifest.NAME).unlink()
    manifest.seal(folder)
    with pytest.raises(UserError, match=r"weights.safetensors does not fit .* wrote it \(0.1.0\)"):
        Model.open(folder)


def test_what_comes_with_the_package_is_a_model_and_can_be_promoted(home):
    found = registry.resolve("molecules@pretrained")
    assert found.version is None
    sizes = {
        path.name: path.stat().st_size for path in registry.fetch("molecules@pretrained").iterdir()
    }
    assert sizes["weights.safetensors"] < 5_000_000
    assert "not a medical device" in registry.show("molecules@pretrained")["card"]
    info = registry.show("molecules@pretrained")["model"]
    page = report.render(info, [], [], "nats")
    assert f"kept by validation nats: {info['training']['kept']}".encode() in page
    state = registry.promote("molecules@pretrained")
    assert state["version"] == 1
    assert registry.resolve("molecules@production").version == 1
    with pytest.raises(
        UserError, match=r"diagnosis has no pretrained model .* there are: molecules"
    ):
        registry.resolve("diagnosis@pretrained")
