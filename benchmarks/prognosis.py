"""How well survival is foreseen, beside Cox, forests, boosting and DeepSurv on the same folds.

    python -m benchmarks.prognosis FOLDER [--sets SET ...] [--arms ARM ...]

Five folds stratified by event; whatever is fitted is fitted to the training fold, of which ours
holds back 15 % to choose its moment. Every model is judged by its curves alone, with the same
functions: risk is minus the mean curve at 60 quantiles (.02 to .9) of the training events' times.
Peers: scikit-survival's Cox, random survival forest and gradient boosting, pycox's DeepSurv
(benchmarks/requirements.txt). Each finished arm is kept in the result
file, and the same command goes on from there (`--afresh` forgets them).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from aigc_ray import catalogue, config, fidelity
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.model import Model
from aigc_ray.storage import local
from aigc_ray.tasks.prognosis import metrics
from aigc_ray.tasks.prognosis.task import Prognosis
from aigc_ray.train import train
from aigc_ray.worker import split
from benchmarks import record

COMMAND = "python -m benchmarks.prognosis FOLDER"
FOLDS = 5
HELD_BACK = 0.15
SIGNIFICANT = 0.05  # of D-calibration
TRANSFER_STEPS = 200
COHORT = (
    "kid", "kid_real", "precision", "recall", "density", "coverage", "coverage_real",
    "marginals", "marginals_real", "ties", "ties_real", "course", "course_real",
    "tstr_harrell_c", "trtr_harrell_c", "tstr_over_trtr",
    "nn_auc", "membership_auc", "copy_rate",
)  # fmt: skip
GAINS = ("kid", "density", "coverage", "marginals", "ties", "course", "tstr_harrell_c")
PAIRED = {"folds": ("harrell_c", "ibs"), "cohort_folds": GAINS}
KEPT = ("harrell_c", "uno_c", "antolini_c", "ibs")
QUANTILES = np.linspace(0.02, 0.9, 60)


class Patients(NamedTuple):
    """A set: columns (numbers, or pandas categories), times and events."""

    columns: pd.DataFrame
    time: np.ndarray
    event: np.ndarray  # bool


class Curves(NamedTuple):
    """Survival (N, T) at times (T,)."""

    times: np.ndarray
    survival: np.ndarray
    held_back_nll: float | None = None  # by which settings are chosen
    cohort: dict[str, float] | None = None  # figures of generated patients


Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Curves]


# --- the sets -----------------------------------------------------------------------------------


def gbsg2() -> Patients:
    """German breast cancer study group 2 (Schumacher et al. 1994), 686 patients."""
    from lifelines.datasets import load_gbsg2

    table = load_gbsg2()
    table["tgrade"] = table["tgrade"].map({"I": 1.0, "II": 2.0, "III": 3.0})
    return _patients(table, "time", table["cens"] == 1, ["cens"])


def metabric() -> Patients:
    """METABRIC in the columns of DeepSurv (Katzman et al. 2018), 1,904 patients."""
    return _deepsurv("metabric")


def support() -> Patients:
    """SUPPORT in the columns of DeepSurv (Katzman et al. 2018), 8,873 patients."""
    return _deepsurv("support")


def pbc2() -> Patients:
    """Primary biliary cirrhosis at the first visit (Fleming and Harrington 1991), 312 patients; a
    transplant censors."""
    table = pd.read_csv(catalogue.fetch("pbc2"))
    table = table[table["year"] == 0].reset_index(drop=True)
    dropped = ["sno.", "id", "year", "status", "status2"]
    return _patients(table, "years", table["status2"] == 1, dropped)


def _deepsurv(name: str) -> Patients:
    folder = catalogue.fetch(name)
    parts = [pd.read_csv(folder / f"{part}.csv.gz") for part in ("train", "test")]
    table = pd.concat(parts, ignore_index=True)
    return _patients(table, "time", table["event"] == 1, ["event"])


def _patients(table: pd.DataFrame, time: str, event: Any, dropped: list[str]) -> Patients:
    columns = table.drop(columns=[time, *dropped])
    for name in columns:
        if columns[name].dtype == object:
            columns[name] = columns[name].astype("category")
    return Patients(columns, table[time].to_numpy(float), event.to_numpy(bool))


SETS = {"gbsg2": gbsg2, "pbc2": pbc2, "metabric": metabric, "support": support}


# --- the peers ----------------------------------------------------------------------------------


def numbers(columns: pd.DataFrame, train: np.ndarray) -> np.ndarray:
    """(N, D): numbers standardised by the training rows, missing ones as their median with a flag,
    categories as zeros and ones."""
    found = []
    for name in columns:
        column = columns[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            codes = column.cat.codes.to_numpy()
            found += [(codes == code).astype(float) for code in range(1, codes.max() + 1)]
            missing = codes < 0
        else:
            values = column.to_numpy(float)
            missing = np.isnan(values)
            values = np.where(missing, np.nanmedian(values[train]), values)
            spread = values[train].std() or 1.0
            found.append((values - values[train].mean()) / spread)
        if missing.any():
            found.append(missing.astype(float))
    return np.stack(found, 1)


def coxph(x: np.ndarray, time: np.ndarray, event: np.ndarray, new: np.ndarray) -> Curves:
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    return _sksurv(CoxPHSurvivalAnalysis(alpha=0.01), x, time, event, new)


def rsf(x: np.ndarray, time: np.ndarray, event: np.ndarray, new: np.ndarray) -> Curves:
    from sksurv.ensemble import RandomSurvivalForest

    model = RandomSurvivalForest(200, min_samples_leaf=15, max_features="sqrt", random_state=0)
    return _sksurv(model, x, time, event, new)


def gbsa(x: np.ndarray, time: np.ndarray, event: np.ndarray, new: np.ndarray) -> Curves:
    from sksurv.ensemble import GradientBoostingSurvivalAnalysis

    model = GradientBoostingSurvivalAnalysis(n_estimators=100, max_depth=3, random_state=0)
    return _sksurv(model, x, time, event, new)


def _sksurv(
    model: Any, x: np.ndarray, time: np.ndarray, event: np.ndarray, new: np.ndarray
) -> Curves:
    from sksurv.util import Surv

    model.fit(x, Surv.from_arrays(event, time))
    return _steps(model.unique_times_, model.predict_survival_function(new, return_array=True))


def deepsurv(x: np.ndarray, time: np.ndarray, event: np.ndarray, new: np.ndarray) -> Curves:
    """Two layers of 64, batch normalisation, dropout .2, Adam 1e-3, patience 15 on 15 %."""
    import torchtuples
    from pycox.models import CoxPH
    from sklearn.model_selection import train_test_split

    torch.manual_seed(0)
    np.random.seed(0)
    train, held = train_test_split(
        np.arange(len(x)), test_size=HELD_BACK, stratify=event, random_state=0
    )

    def rows(at: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        return x[at].astype("f4"), (time[at].astype("f4"), event[at].astype("f4"))

    network = torchtuples.practical.MLPVanilla(
        x.shape[1], [64, 64], 1, batch_norm=True, dropout=0.2, output_bias=False
    )
    model = CoxPH(network, torchtuples.optim.Adam(1e-3))
    stop = [torchtuples.callbacks.EarlyStopping(patience=15)]
    size = 64 if len(x) < 3000 else 256
    options = {"val_data": rows(held), "val_batch_size": len(held), "verbose": False}
    model.fit(*rows(train), size, 200, stop, **options)
    model.compute_baseline_hazards()
    found = model.predict_surv_df(new.astype("f4"))
    return _steps(found.index.to_numpy(), found.to_numpy().T)


def _steps(times: np.ndarray, survival: np.ndarray) -> Curves:
    """Stairs as points: at each time the value before it and the one after."""
    times = np.concatenate([[0.0], times])
    survival = np.concatenate([np.ones((len(survival), 1)), survival], 1)
    return Curves(np.repeat(times, 2)[1:], np.repeat(survival, 2, 1)[:, :-1])


PEERS: dict[str, Fit] = {"coxph": coxph, "deepsurv": deepsurv, "rsf": rsf, "gbsa": gbsa}


# --- ours ---------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {"num_workers": 0, "transfer_steps": 0}
MEMBERS = 3  # of the ensemble that is compared; one of them is timed by prognosis_speed
OURS: dict[str, dict[str, Any]] = {"aigc": {}, "aigc_without_adversary": {"critic_steps": 0}}


def aigc(
    patients: Patients,
    train_rows: np.ndarray,
    test: np.ndarray,
    folder: Path,
    fold: int,
    more: dict[str, Any],
) -> Curves:
    """A whole training on the fold, from a file on; the curves of its test rows in their order."""
    data = ingested(patients, train_rows, test, folder)
    settings = SETTINGS | sized(len(train_rows)) | {"seed": fold, "members": MEMBERS} | more
    summary = train("prognosis", data, settings, register=False, fresh=True)
    model = Model.open(_folder(summary["uri"]))
    job = {"data": data, "description": load_manifest(data)}
    found = [model.recognise(batch) for batch in split(job, model.task, "test")]
    parts = {name: list(split(job, model.task, name)) for name in ("train", "val", "test")}
    # Each fold's patients are drawn by noise of its own.
    noise = fidelity.SEED + 100 * fold
    cohort = fidelity.fidelity(model, parts["train"], parts["val"], parts["test"], noise)
    cohort |= fidelity.transfer(model, parts["train"], parts["test"], TRANSFER_STEPS)
    survival = torch.cat([one["survival"] for one in found]).numpy()
    if len(survival) != len(test):
        raise RuntimeError(f"{len(test) - len(survival)} test rows were left out of {data}")
    flat = {name: value for name, value in cohort.items() if isinstance(value, float)}
    flat |= {name: cohort[name]["value"] for name in COHORT if isinstance(cohort[name], dict)}
    return Curves(
        found[0]["times"][0].numpy(),
        survival,
        summary["metrics"]["val"]["nll"],
        {name: flat[name] for name in COHORT},
    )


def ingested(patients: Patients, train_rows: np.ndarray, test: np.ndarray, folder: Path) -> str:
    """The URI of a fold as a data set, from a file on; a part of its training rows held back."""
    from sklearn.model_selection import train_test_split

    train_part, held = train_test_split(
        train_rows, test_size=HELD_BACK, stratify=patients.event[train_rows], random_state=0
    )
    part = np.empty(len(patients.time), object)
    part[train_part], part[held], part[test] = "train", "val", "test"
    table = patients.columns.assign(
        time=patients.time, event=patients.event.astype(int), split=part
    )
    folder.mkdir(parents=True, exist_ok=True)
    features: dict[str, Any] = {}
    for name in patients.columns:
        category = isinstance(patients.columns[name].dtype, pd.CategoricalDtype)
        features[name] = {"kind": "category" if category else "number"}
    declared = {"time": "time", "event": "event", "split": "split", "features": features}
    (folder / "columns.json").write_text(json.dumps(declared))
    # Of equal rows in two splits the first one met is kept: the test split stays whole.
    order = np.argsort([["test", "val", "train"].index(one) for one in part], kind="stable")
    table.iloc[order].to_csv(folder / "patients.csv", index=False)
    task = Prognosis(columns=str(folder / "columns.json"))
    data = str(folder / "data")
    ingest(task, str(folder / "patients.csv"), data, parallel=0)
    return data


def sized(rows: int) -> dict[str, Any]:
    """Steps, batches and rate for so many training rows, chosen by held-back likelihood."""
    if rows > 3000:
        return {"batch_size": 256, "steps": 300, "recogniser_rate": 6e-3}
    return {"batch_size": 64, "steps": 200, "recogniser_rate": 2e-3}  # the defaults


def _folder(uri: str) -> Path:
    path = local(uri)
    assert path is not None
    return path / "model"


# --- the comparison -----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for data and models")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    arms = [*PEERS, *OURS]
    parser.add_argument("--arms", nargs="+", default=arms, choices=arms)
    parser.add_argument("--afresh", action="store_true", help="forget what is done")
    parser.add_argument("--try", nargs="*", metavar="key=value", help="settings; keep nothing")
    options = parser.parse_args()
    os.environ["AIGC_HOME"] = str(options.folder.absolute() / "home")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the peers
    trial = None if getattr(options, "try") is None else config.parse(getattr(options, "try"))
    if options.afresh:
        record.save("prognosis", {}, seeds=[0], command=COMMAND)
    for name in options.sets:
        patients = SETS[name]()
        for arm in options.arms:
            if trial is None and arm in _done().get(name, {}):
                continue
            found = compared(arm, patients, options.folder / name, trial or {})
            print(json.dumps({name: {arm: found}}), file=sys.stderr, flush=True)
            if trial is None:
                done = _done()  # another process may have done other arms
                done.setdefault(name, {})[arm] = found
                if all(one in done[name] for one in OURS):
                    done[name]["paired"] = _paired(*(done[name][one] for one in OURS))
                record.save("prognosis", done, seeds=[0], command=COMMAND)
    done = _done()
    if trial is None and all("paired" in done.get(name, {}) for name in SETS):
        every = [
            {part: [f for name in SETS for f in done[name][arm][part]] for part in PAIRED}
            for arm in OURS
        ]
        record.save("prognosis", done | {"paired": _paired(*every)}, seeds=[0], command=COMMAND)


def _done() -> dict[str, Any]:
    path = record.RESULTS / "prognosis.json"
    found: dict[str, Any] = json.loads(path.read_text())["metrics"] if path.exists() else {}
    return found


def compared(arm: str, patients: Patients, folder: Path, trial: dict[str, Any]) -> dict[str, Any]:
    """An arm's figures over the folds."""
    found, ours, began = [], [], time.monotonic()
    for fold, (train_rows, test) in enumerate(folds(patients.event)):
        if arm in PEERS:
            x = numbers(patients.columns, train_rows)
            known = x[train_rows], patients.time[train_rows], patients.event[train_rows]
            curves = PEERS[arm](*known, x[test])
        else:
            where = folder / str(fold)
            curves = aigc(patients, train_rows, test, where, fold, OURS[arm] | trial)
            ours.append(curves)
        found.append(_judged(curves, patients, train_rows, test))
    calibrated = sum(one["d_calibration_p"] > SIGNIFICANT for one in found)
    return {
        **{key: record.mean([one[key] for one in found]) for key in KEPT},
        "dcal_folds": calibrated,
        "seconds": round(time.monotonic() - began, 1),
        "folds": [{key: round(value, 5) for key, value in one.items()} for one in found],
        "commit": record.commit(),
    } | (_own(ours) if ours else {})


def _own(ours: list[Curves]) -> dict[str, Any]:
    """What peers have not: figures of cohorts, and the likelihood by which settings are chosen."""
    cohorts = [one.cohort or {} for one in ours]
    return {
        "held_back_nll": record.mean([one.held_back_nll or 0.0 for one in ours]),
        "cohort": {name: record.mean([one[name] for one in cohorts]) for name in COHORT},
        "cohort_folds": [{k: round(v, 5) for k, v in one.items()} for one in cohorts],
    }


def _paired(ours: dict[str, Any], without: dict[str, Any]) -> dict[str, Any]:
    """What the adversarial part adds, fold by fold, with the p-value of a paired t-test."""
    from scipy.stats import ttest_rel

    found = {}
    for part, figures in PAIRED.items():
        for name in figures:
            pair = [[fold[name] for fold in arm[part]] for arm in (ours, without)]
            gaps = [a - b for a, b in zip(*pair, strict=True)]
            p = float(ttest_rel(*pair).pvalue) if any(gaps) else 1.0
            found[name] = {**record.mean(gaps), "p": round(p, 5)}
    return found


def folds(event: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold

    return StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(event, event)


def _judged(
    curves: Curves, patients: Patients, train_rows: np.ndarray, test: np.ndarray
) -> dict[str, float]:
    died = patients.time[train_rows][patients.event[train_rows]]
    times, survival = curves.times, curves.survival
    risk = -metrics.at(times, survival, np.quantile(died, QUANTILES)).mean(1)
    return metrics.figures(times, survival, risk, patients.time[test], patients.event[test])


if __name__ == "__main__":
    main()
