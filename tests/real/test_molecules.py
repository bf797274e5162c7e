"""The model of molecules that comes with the package, on drug-like molecules that it never saw."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import aigc_ray
from aigc_ray import catalogue, noise, tables
from aigc_ray.task import stack
from aigc_ray.tasks.molecules import chemistry, metrics, speaker, wishes

pytestmark = pytest.mark.real
COUNT = 1000
MANY = 3000  # for distributions: of fewer, two real sets differ by half of what is allowed


@pytest.fixture(scope="module")
def model():
    return aigc_ray.load("molecules@pretrained")


@pytest.fixture(scope="module")
def real():
    rows = [row["SMILES"] for row in tables.read(f"{catalogue.fetch('moses')}/test.csv.gz") if row]
    return random.Random(0).sample(rows, MANY)


def nats(model, texts):
    records = [model.parse({"smiles": text}) for text in texts]
    columns = stack([model._fields(record) for record in records])
    batch = model.task.encode(columns, noise.keys(0, torch.arange(len(texts))))
    return model.recognise(batch)["nats"].numpy()


def test_unseen_molecules_are_likelier_than_varied_compounds_of_their_size(model, real):
    lines = [line.split()[0] for line in tables.lines(str(catalogue.fetch("nci")))]
    others = [text for text in lines if 20 <= len(text) <= 45][:COUNT]
    there = []
    for text in others:
        try:
            model.parse({"smiles": text})
            there.append(text)
        except ValueError:
            continue
    assert np.median(nats(model, there)) > np.median(nats(model, real[:COUNT])) + 8


def test_samples_are_molecules_like_the_real_ones(model, real):
    made = model.generate(n=MANY, filters=[], novel=False, evidence=False)
    smiles = [item["smiles"] for item in made]
    assert len(set(smiles)) == MANY
    found = metrics.compared(real, smiles)
    assert found["filters"] > 0.95
    assert 0.83 < found["diversity"] < 0.88
    assert found["fragments"] > 0.97
    for name in ("logp", "qed", "mw", "tpsa"):
        assert found[f"{name}_distance"] < 0.15, name
    known = sum(item["in_training"] for item in model.generate(n=200, filters=[], novel=False))
    assert known < 60


def test_what_is_wished_for_is_said_before_anything_is_chosen(model):
    voice = speaker.Speaker(model.members[0], model.task.length)
    wished, obtained = [], []
    for seed, aim in enumerate(np.linspace(0.5, 4.5, 12)):
        asked = {"seed": seed, "logp": float(aim), "critic": False}
        wanted = wishes.wanted(asked, ())
        plan = speaker.plain(voice, wanted)
        for one in speaker.candidates(voice, wanted, plan, 32, Counter()):
            wished.append(aim)
            obtained.append(chemistry.property_of(one.molecule, "logp"))
    assert len(obtained) > 250
    assert spearmanr(wished, obtained).statistic > 0.85
