"""What every entry of TASKS owes the loop, the registry and the server, checked for each alike."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from aigc_ray import config, fidelity, noise, rows
from aigc_ray.adversary import Adversary
from aigc_ray.ingest import ingest
from aigc_ray.model import Model, restore, write
from aigc_ray.schema import Schema
from aigc_ray.task import Batch, Record, Shortfall, Step, Task
from aigc_ray.tasks import TASKS, task_class
from tests import cohort, molecule_files, protein_files, sequence_files
from tests.tiny import TINY


class Example(NamedTuple):
    """The smallest data of a task, and how to ask it something."""

    source: Callable[[Path], str]  # writes raw data into a folder and names it
    settings: Mapping[str, Any]
    request: Callable[[Path], Mapping[str, Any]]  # one item to be recognised
    generate: Mapping[str, Any]  # asks for three


def _bright_squares(folder: Path) -> str:
    """Noise, with a bright square in the images of the second class."""
    random, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 96), ("val", 64), ("test", 32)):
        label = np.arange(count) % 2
        image = random.integers(0, 200, (count, 28, 28), np.uint8)
        image[:, 10:18, 10:18] += (55 * label[:, None, None]).astype(np.uint8)
        arrays |= {f"{split}_images": image, f"{split}_labels": label[:, None]}
    np.savez(folder / "squares.npz", **arrays)
    return str(folder / "squares.npz")


def _image(folder: Path) -> Mapping[str, Any]:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.load(folder / "squares.npz")["test_images"][0]).save(file, "PNG")
    return {"file": file.getvalue()}


def _patients(folder: Path) -> str:
    """A table whose patients die the sooner the older they are, and sooner under one therapy."""
    cohort.write(folder / "patients.csv", 300)
    return str(folder / "patients.csv")


def _molecules(folder: Path) -> str:
    """A table of small molecules."""
    molecule_files.write(folder / "molecules.csv", 400)
    return str(folder / "molecules.csv")


def _sequences(folder: Path) -> str:
    """A table of short sequences, of which promoters hold a motif that is often spoiled."""
    sequence_files.write(folder / "sequences.csv", 600, kept=0.9, spread=3)
    return str(folder / "sequences.csv")


TRAINING = ("batch_size", "validate_every", "transfer_steps")
EXAMPLES = {
    "diagnosis": Example(
        _bright_squares,
        {key: value for key, value in TINY.items() if key not in TRAINING},
        _image,
        {"n": 3, "seed": 5, "class": "1"},
    ),
    "dna": Example(
        _sequences,
        {
            "steps": 60,
            "width": 16,
            "recogniser_width": 16,
            "recogniser_dropout": 0.1,
            "recogniser_rate": 1e-2,
            "precision": "fp32",
        },
        lambda folder: {"sequence": sequence_files.sequences(1, seed=9)[0][0]},
        {"n": 3, "seed": 5, "class": "promoter"},
    ),
    "molecules": Example(
        _molecules,
        {
            "activities": "none",
            "split": "random",
            "steps": 60,
            "adversarial_steps": 8,
            "width": 48,
            "critic_width": 32,
            "references": 50,
            "generator_rate": 1e-2,
        },
        lambda folder: {"smiles": "CCOc1ccccc1"},
        {"n": 3, "seed": 5, "filters": [], "novel": False},
    ),
    "prognosis": Example(
        _patients,
        {"steps": 40, "mixture": 4, "width": 16, "bins": 8},
        lambda folder: {"age": 61.5, "therapy": "new", "horizons": [1, 2.5]},
        {"n": 3, "seed": 5},
    ),
    "proteins": Example(
        lambda folder: protein_files.write(folder / "structures"),
        {
            "stride": 4,
            "steps": 24,
            "width": 16,
            "recogniser_width": 16,
            "references": 50,
            "recogniser_rate": 3e-3,
            "precision": "fp32",
        },
        lambda folder: {"pdb": protein_files.one(0, seed=9).decode()},
        {"n": 3, "seed": 5, "plausible": 0.2},
    ),
}


class Ready(NamedTuple):
    name: str
    folder: Path
    task: Task
    data: rows.Rows
    trained: Adversary
    validation: list[Batch]

    def batch(self, count: int = 16, start: int = 0) -> Batch:
        taken = {name: column[start : start + count] for name, column in self.data.items()}
        return self.task.encode(taken, noise.keys(0, torch.arange(start, start + count)))


@pytest.fixture(scope="module", params=sorted(TASKS))
def ready(request, tmp_path_factory):
    """A task that has seen its data and trained for a moment."""
    folder, example = tmp_path_factory.mktemp(request.param), EXAMPLES[request.param]
    plain = config.override(task_class(request.param)(), dict(example.settings))
    manifest = ingest(plain, example.source(folder), str(folder / "data"), parallel=0)
    task = dataclasses.replace(plain, schema=Schema.from_json(manifest["schema"]))
    names = [field.name for field in task.schema.fields]
    data, held_back = (
        rows.load(str(folder / "data"), manifest, split, names) for split in ("train", "val")
    )
    validation = [task.encode(held_back, noise.keys(0, torch.arange(len(held_back[names[0]]))))]
    made = Ready(request.param, folder, task, data, Adversary(task, seed=0), validation)
    made.trained.prepare(iter([made.batch(len(data[names[0]]))]))
    for step in range(made.trained.steps):
        made.trained.step(made.batch(start=16 * (step % 6)), validation[0])
    return made


def model(ready: Ready) -> Model:
    return Model(ready.task, [ready.trained.average], {})


def test_every_task_has_an_example():
    assert set(EXAMPLES) == set(TASKS)


def test_rows_have_the_shapes_of_the_schema(ready):
    task, batch = ready.task, ready.batch(4)
    assert set(batch.value) == {field.name for field in task.schema.fields}
    for field in task.schema.fields:
        assert batch.value[field.name].shape == (4, *field.shape)
        assert batch.known[field.name].shape == (4,)
        assert batch.known[field.name].dtype == torch.bool
    assert batch.weight.shape == (4,)
    _, sources = task.survey(EXAMPLES[ready.name].source(ready.folder))
    first = next(iter(task.read(sources[0])))
    assert isinstance(first, dict)
    assert {field.name for field in task.schema.fields} <= set(first)


def test_a_draw_has_the_shapes_of_the_schema_and_hangs_on_its_rows_alone(ready):
    networks, batch = ready.trained.average, ready.batch(6)
    drawn = ready.task.draw(networks, batch)
    for field in ready.task.schema.part("generated"):
        assert drawn.value[field.name].shape == (6, *field.shape)
    part = ready.task.draw(networks, ready.batch(2, start=4))
    for name, value in drawn.value.items():
        torch.testing.assert_close(part.value[name], value[4:], atol=1e-5, rtol=1e-4)


def test_every_loss_is_one_figure_that_moves_its_own_network_only(ready):
    adversary = Adversary(ready.task, seed=1)
    batch = ready.batch()
    turn = Step(lambda value, weight: (value * weight).sum() / weight.sum(), 0, 0.5, 0.5, print)
    for stage in ready.task.stages():
        for player in stage.players:
            adversary.networks.zero_grad()
            for name, network in adversary.networks.items():
                network.requires_grad_(name == player.network)
            draw = ready.task.draw(adversary.networks, batch)
            loss = player.loss(adversary.networks, batch, draw, turn)
            assert loss.shape == ()
            assert torch.isfinite(loss)
            loss.backward()
            moved = {
                name
                for name, network in adversary.networks.items()
                if any(p.grad is not None and p.grad.any() for p in network.parameters())
            }
            assert moved == {player.network}


def test_a_short_training_improves_the_objective(ready):
    metric, direction = ready.task.objective
    untrained = Adversary(ready.task, seed=0)
    untrained.prepare(iter([ready.batch(len(next(iter(ready.data.values()))))]))
    fresh = Model(ready.task, [untrained.average], {})
    before = fidelity.figures(fresh, ready.validation)[metric]
    after = fidelity.figures(model(ready), ready.validation)[metric]
    assert after > before if direction == "max" else after < before


def test_answers_pass_through_json_and_hang_on_their_own_item_alone(ready):
    item = EXAMPLES[ready.name].request(ready.folder)
    alone, other = model(ready).predict([item])[0], model(ready).predict([item] * 3)[2]
    assert json.loads(json.dumps(alone)) == alone == other


def test_predictions_average_over_an_ensemble(ready):
    second = Adversary(ready.task, seed=7).average
    both = Model(ready.task, [ready.trained.average, second], {})
    batch = ready.batch(4)
    apart = [Model(ready.task, [member], {}).recognise(batch) for member in both.members]
    for name, value in both.recognise(batch).items():
        if name == "features":
            assert torch.equal(value, apart[0][name])  # two spaces have no mean
        elif not name.endswith("_spread"):
            torch.testing.assert_close(value, (apart[0][name] + apart[1][name]) / 2)


def test_generated_items_are_what_was_asked_for_and_the_same_again(ready):
    wanted = EXAMPLES[ready.name].generate
    first, again = (list(ready.task.generate(model(ready), wanted)) for _ in range(2))
    assert len(first) + sum(item.missing for item in first if isinstance(item, Shortfall)) == 3
    assert first == again
    for item in first:
        if not isinstance(item, Shortfall):
            plain = {key: value for key, value in item.items() if not isinstance(value, bytes)}
            assert json.loads(json.dumps(plain)) == plain


def test_pictures_are_png(ready):
    assert ready.task.sample(model(ready))[:4] == b"\x89PNG"
    shown = list(ready.task.pictures(model(ready), ready.validation[0]))
    assert shown
    assert all(caption and picture[:4] == b"\x89PNG" for caption, picture in shown)


def test_a_model_is_restored_from_its_folder(ready, tmp_path):
    settings = config.to_json(ready.task)
    info = {"task": ready.name, "configuration": settings} | {"schema": ready.task.schema.to_json()}
    write(tmp_path, [ready.trained.averaged()], info)
    task = restore(json.loads((tmp_path / "model.json").read_text()))
    assert task == ready.task
    record: Record = task.parse(EXAMPLES[ready.name].request(ready.folder))
    assert model(ready).answer([record]) == model(ready).predict(
        [EXAMPLES[ready.name].request(ready.folder)]
    )


def test_every_searched_setting_is_a_setting(ready):
    for key, choice in ready.task.space().items():
        assert choice[0] in ("log", "linear", "choice")
        config.override(ready.task, {key: choice[1]})
