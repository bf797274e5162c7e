"""Chains of complexes and entries: what a rule loses to errors of half an ångström is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aigc_ray import catalogue, noise, registry, rows
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.model import Model
from aigc_ray.tasks.proteins import decoys, design, geometry, metrics
from aigc_ray.tasks.proteins.assignment import assign
from aigc_ray.tasks.proteins.data import STRUCTURE, TRACE
from aigc_ray.tasks.proteins.recovery import recover
from aigc_ray.tasks.proteins.task import Proteins
from aigc_ray.train import train

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proteins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(folder / "home"))
        source, data = str(catalogue.fetch("protein_structures")), str(folder / "data")
        facts = ingest(Proteins(), source, data, parallel=0)
        assert facts["rejects"]["count"] == 35  # too short, or no protein
        assert facts["patients"]["in_several_splits"] == 0
        settings = {"num_workers": 0, "steps": 150, "batch_size": 32, "transfer_steps": 0}
        summary = train("proteins", data, settings, register=False)
        model = Model.open(registry.fetch(f"{summary['uri']}/model"))
    return model, {"data": data, "description": load_manifest(data)}


def _test_rows(trained):
    model, job = trained
    names = [field.name for field in model.task.schema.fields]
    columns = rows.load(job["data"], job["description"], "test", names)
    return model, model.task.encode(columns, noise.keys(0, torch.arange(len(columns[TRACE]))))


def test_secondary_structure_is_told_of_blurred_windows(trained):
    model, test = _test_rows(trained)
    right = test.value[STRUCTURE].numpy()
    blurred = decoys.shaken(test.value[TRACE], test.row, 0.5, "real")
    rule = np.mean(np.stack([assign(ca) + 1 for ca in blurred.numpy()]) == right)
    told = design.recognised(model, blurred)["structure"].argmax(2).numpy() + 1
    assert np.mean(told == right) > max(0.75, rule)


def test_maps_come_back_as_the_structures_they_are_of(trained):
    _, test = _test_rows(trained)
    ca = test.value[TRACE][:32]
    found = recover(geometry.distances(ca), geometry.chirality(ca))
    assert float(geometry.rmsd(found.ca, ca).median()) < 0.3


def test_generated_backbones_are_ones_that_a_protein_could_have(trained):
    model, _ = trained
    label = torch.arange(32) % 4
    ca = design.drawn(model, label, noise.keys(0, torch.arange(32)))
    assert metrics.bond_ok(ca) > 0.99
    assert metrics.clash_rate(ca).pairs < 0.005
    assert metrics.right_handed(ca).right > 0.99
