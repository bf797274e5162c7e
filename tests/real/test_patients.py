"""A minute on real patients: what is trained must beat what is trivial.

Run by `make check-real` with AIGC_DATA_MIRROR set. The benchmarks hold the figures.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from aigc_ray import catalogue, registry
from aigc_ray.ingest import ingest
from aigc_ray.model import Model
from aigc_ray.tasks.prognosis import metrics
from aigc_ray.tasks.prognosis.task import Prognosis
from aigc_ray.train import train

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ray):
    """METABRIC by DeepSurv's split, the summary of a training, and its model."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(home))
        folder = catalogue.fetch("metabric")
        parts = {name: pd.read_csv(folder / f"{name}.csv.gz") for name in ("train", "test")}
        held_back = np.random.default_rng(0).random(len(parts["train"])) < 0.15
        parts["train"]["split"] = np.where(held_back, "val", "train")
        parts["test"]["split"] = "test"
        table = pd.concat([parts["test"], parts["train"]])
        table.to_csv(home / "patients.csv", index=False)
        features = {name: "number" for name in table if name.startswith("x")}
        declared = {"time": "time", "event": "event", "split": "split", "features": features}
        (home / "columns.json").write_text(json.dumps(declared))
        task = Prognosis(columns=str(home / "columns.json"))
        ingest(task, str(home / "patients.csv"), str(home / "data"), parallel=0)
        settings = {"num_workers": 2, "steps": 400, "validate_every": 50, "transfer_steps": 200}
        summary = train("prognosis", str(home / "data"), settings)
        return parts, summary, Model.open(registry.fetch(summary["model"]))


@pytest.mark.timeout(900)
def test_patients_are_ranked_better_than_by_cox_and_curves_are_calibrated(trained):
    from lifelines import CoxPHFitter

    parts, summary, _ = trained
    test = parts["test"]
    time, event = test["time"].to_numpy(float), test["event"].to_numpy() == 1
    known = parts["train"].drop(columns="split")
    cox = CoxPHFitter().fit(known, "time", "event")
    trivial, _ = metrics.concordance(cox.predict_log_partial_hazard(test).to_numpy(), time, event)
    found = summary["metrics"]["test"]
    assert found["harrell_c"] > trivial
    assert found["d_calibration_p"] > 0.01
    # Kaplan and Meier's curve, the same for all, has .21.
    assert found["ibs"] < 0.2


def test_what_is_learned_from_a_generated_cohort_holds_and_nobody_is_copied(trained):
    _, _, model = trained
    found = model.info["generation"]
    assert found["tstr_over_trtr"] > 0.93
    assert not found["copies"]
    assert found["course"] < 0.06
    assert found["marginals"] < min(0.1, found["marginals_real"] + 0.04)


def test_a_course_is_answered_with_attributions_that_add_up(trained):
    _, _, model = trained
    patient = {"x0": 5.6, "x8": 85.0, "horizons": [60]}
    (answer,) = model.predict([patient])
    assert 0 < answer["horizons"][0]["survival"] < 1
    said = model.explain(model.parse(patient))
    total = sum(said["attributions"].values())
    assert total == pytest.approx(said["survival"] - said["baseline"], abs=0.01)
