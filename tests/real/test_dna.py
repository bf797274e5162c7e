"""Promoters with a TATA box, their own splits: recognised beyond chance, and generated alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from aigc_ray import assess, catalogue, noise, registry, rows
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.model import Model
from aigc_ray.tasks.dna import design, metrics
from aigc_ray.tasks.dna.data import LABEL, SEQUENCE
from aigc_ray.tasks.dna.task import Dna
from aigc_ray.train import train

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dna")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(folder / "home"))
        source, data = str(catalogue.fetch("tata_300")), str(folder / "data")
        facts = ingest(Dna(), source, data, parallel=0)
        assert facts["duplicates"]["across"] == {"train/test": 6, "train/val": 14}
        settings = {"num_workers": 0, "steps": 120, "transfer_steps": 0, "width": 32}
        summary = train("dna", data, settings, register=False)
        model = Model.open(registry.fetch(f"{summary['uri']}/model"))
    return model, {"data": data, "description": load_manifest(data)}


def test_promoters_are_recognised(trained):
    model, job = trained
    assert assess.told(model, job, "test")["metrics"]["auc"] > 0.94  # words alone reach .75


def test_generated_promoters_have_the_words_and_the_box_of_real_ones(trained):
    model, job = trained
    columns = rows.load(job["data"], job["description"], "test", [SEQUENCE, LABEL])
    codes = model.task.encode(columns, torch.arange(len(columns[LABEL])))
    real = codes.value[SEQUENCE][codes.value[LABEL] == 1].numpy()
    row = noise.keys(0, torch.arange(len(real)))
    made = design.drawn(model, torch.ones(len(real), dtype=torch.int64), row, None).numpy()
    halves = metrics.word_divergences(real[::2], real[1::2])
    ours = metrics.word_divergences(made[::2], real[1::2])
    assert all(ours[order] < 2 * halves[order] for order in metrics.WORDS)
    where = [np.mean([bool(at) and 210 < at[0] < 230 for at in metrics.places(one)["tata_box"]])
             for one in (made, real)]  # fmt: skip
    assert where[0] > 0.5 * where[1] > 0


def test_the_critic_tells_real_promoters_from_what_the_chains_say(trained):
    model, job = trained
    columns = rows.load(job["data"], job["description"], "test", [SEQUENCE, LABEL])
    real = model.task.encode(columns, torch.arange(len(columns[LABEL]))).value
    networks, label = model.members[0], real[LABEL]
    numbers = noise.uniform(noise.keys(3, torch.arange(len(label))), "said", (301,))
    said = networks["chains"].say(label, numbers)
    with torch.inference_mode():
        held = [networks["critic"].both(codes, label)[0] for codes in (real[SEQUENCE], said)]
    flags = torch.tensor([1, 0]).repeat_interleave(len(label))
    assert roc_auc_score(flags, torch.cat(held)) > 0.55  # a critic that learned nothing: .5


def test_what_is_asked_of_a_promoter_is_kept(trained):
    model, _ = trained
    items = model.generate(n=8, seed=1, **{"class": "1"}, motifs=["CCAAT"], forbidden=["EcoRI"])
    assert len(items) == 8
    for item in items:
        assert "CCAAT" in item["sequence"] and "GAATTC" not in item["sequence"]
