"""The tables of the documents, written from the result files between their markers.

`python -m benchmarks.tables` rewrites them; a test fails when a document differs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "benchmarks/README.md")
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())
    return found


def filled(document: str) -> str:
    """A document's text with each marked table made anew."""
    text = (ROOT / document).read_text()
    return MARKED.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> None:
    for document in DOCUMENTS:
        (ROOT / document).write_text(filled(document))


# --- one function a table -----------------------------------------------------------------------


def _rows(head: str, rows: list[tuple[Any, ...]]) -> str:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|" + "---|" * columns]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def _spread(value: dict[str, float], digits: int = 2) -> str:
    if value["n"] == 1:
        return f"{value['mean']:.{digits}f} (n = 1)"
    return f"{value['mean']:.{digits}f} ± {value['sd']:.{digits}f} (n = {value['n']})"


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return f"{machine['cores']} CPU cores ({machine['cpu']})"


def quickstart() -> str:
    found = results("quickstart")
    metrics = found["metrics"]
    rows: list[tuple[Any, ...]] = [
        (phase, f"{seconds:.1f} s") for phase, seconds in metrics["seconds"].items()
    ]
    rows.append(("peak memory", f"{metrics['peak_memory_gib']:.1f} GiB"))
    for name, value in metrics["test"].items():
        rows.append((f"test {name}", f"{value:.3f}"))
    for name, value in metrics.get("prognosis", {}).items():
        rows.append((f"prognosis, test {name}", f"{value:.3f}"))
    for name, value in metrics.get("molecules", {}).items():
        rows.append((f"molecules, test {name}", f"{value:.2f}"))
    for task in ("dna", "proteins"):
        for name, value in metrics.get(task, {}).items():
            rows.append((f"{task}, phantoms, test {name}", f"{value:.3f}"))
    return _rows("quickstart, one seed | ", rows) + _when("quickstart")


def train_speed(name: str = "train_speed") -> str:
    found = results(name)
    metrics = found["metrics"]
    rows: list[tuple[Any, ...]] = [
        ("images/s through Ray Train", _spread(metrics["images_per_second"], 1)),
        ("images/s of a bare torchrun loop", _spread(metrics["torchrun_images_per_second"], 1)),
        ("ratio, pair by pair", _spread(metrics["ratio_vs_torchrun"], 3)),
        ("median of the ratios", f"{metrics['ratio_vs_torchrun']['median']:.3f}"),
    ]
    return _rows("training, two workers | ", rows) + _when(name)


def step_speed() -> str:
    """The ladder on a CPU that multiplies in bfloat16 and on one that does not."""
    fast, slow = (results(name)["metrics"]["steps"] for name in ("train_speed", "train_speed_avx2"))
    rows = [
        (
            name,
            *(
                f"{of[name][key]:{form}}" if name in of else "–"
                for of in (fast, slow)
                for key, form in COLUMNS
            ),
        )
        for name in fast
    ]
    head = "step of one worker, each line with those above | AVX-512 bf16, ms | speed-up"
    return _rows(f"{head} | AVX2, ms | speed-up", rows)


def ingest_speed() -> str:
    found = results("ingest_speed")
    metrics = found["metrics"]
    rows = [
        (name.replace("_", " "), _plain(name, value))
        for name, value in metrics.items()
        if isinstance(value, (int, float)) or (isinstance(value, dict) and "mean" in value)
    ]
    return _rows("ingestion of 256×256 PNG | ", rows) + f"\n\n{_machine(found)}."


def _plain(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.2f} ± {value['sd']:.2f}"
    if "memory_5" in name or "memory_2" in name:
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.2f}"


def recognised() -> str:
    """What is recognised: by all of it, without the adversarial part, and by a peer."""
    arms = {"aigc": "aigc_ray", "without_gan": "without the GAN", "resnet18": "plain ResNet-18"}
    rows = [
        (f"{name}, {figure}", *(_known(every[arm], figure) for arm in arms))
        for name, every in _sets("diagnosis").items()
        for figure in every["aigc"]
        if any(figure in every[arm] for arm in ("without_gan", "resnet18"))
    ]
    return _rows(" | ".join(["test split", *arms.values()]), rows) + _when("diagnosis")


def generated() -> str:
    """What is generated, beside a sampler of Gaussians and the founding text's loss."""
    arms = {"aigc": "aigc_ray", "gaussian": "Gaussian a class", "classic": "loss=classic"}
    rows = [
        (f"{name}, {figure}", *(_known(every.get(arm, {}), figure) for arm in arms))
        for name, every in _sets("diagnosis").items()
        for figure in every["aigc"]
        if figure not in every["without_gan"]
    ]
    return _rows(" | ".join(["test split", *arms.values()]), rows) + _when("diagnosis")


def prognosis() -> str:
    """How courses are foreseen, beside the peers, on five folds."""
    arms = {
        "aigc": "aigc_ray",
        WITHOUT: "without the critic",
        "coxph": "Cox",
        "rsf": "random survival forest",
        "gbsa": "gradient boosting",
        "deepsurv": "DeepSurv",
    }
    rows = [
        (f"{name}, {figure}", *(_measured(every.get(arm), figure) for arm in arms))
        for name, every in _sets("prognosis").items()
        for figure in every["aigc"]
        if figure in ("harrell_c", "uno_c", "antolini_c", "ibs", "dcal_folds")
    ]
    return _rows(" | ".join(["five folds", *arms.values()]), rows) + _when("prognosis")


def cohorts() -> str:
    """How like real cohorts the generated ones are, with the critic and without."""
    rows = [
        (
            f"{name}, {figure}",
            *(_measured(every[arm]["cohort"], figure) for arm in ("aigc", WITHOUT)),
            f"{every['paired'][figure]['p']:.3f}" if figure in every["paired"] else "–",
        )
        for name, every in _sets("prognosis").items()
        for figure in every["aigc"]["cohort"]
    ]
    head = "test folds | aigc_ray | copula alone | p, fold by fold"
    return _rows(head, rows) + _when("prognosis")


def gains() -> str:
    """What the critic adds, over all folds of all sets."""
    paired = results("prognosis")["metrics"]["paired"]
    rows = [(figure, _spread(one, 4), f"{one['p']:.4f}") for figure, one in paired.items()]
    return _rows("all folds of all sets | with the critic minus without | p", rows) + _when(
        "prognosis"
    )


def prognosis_speed() -> str:
    metrics = results("prognosis_speed")["metrics"]
    answered = metrics["predict_seconds"]
    fits = {
        "fit_seconds": ("a member's fit, s", 1),
        "fit_seconds_without_critic": ("the same without the critic, s", 1),
        "chosen_step": ("its chosen step of 300", 0),
        "deepsurv_seconds": ("DeepSurv's fit, s", 1),
        "fit_ratio": ("ratio, pair by pair", 2),
        "fit_ratio_without_critic": ("the same without the critic", 2),
    }
    rows = [(name, _spread(metrics[key], digits)) for key, (name, digits) in fits.items()]
    rows.append(
        (
            f"{metrics['patients']} patients in one request, s",
            f"{answered['median']:.2f} ({answered['min']:.2f} to {answered['max']:.2f})",
        )
    )
    return _rows("SUPPORT, two cores | ", rows) + _when("prognosis_speed")


def moses() -> str:
    """What is said of molecules, beside the published rows of the benchmark."""
    metrics = results("molecules")["metrics"]["moses"]
    arms = {
        "aigc": "samples",
        WITHOUT: "by likelihood alone",
        "aigc_passed": "that the critic lets pass",
        "latentgan": "LatentGAN",
        "charrnn": "CharRNN",
    }
    rows = [
        (figure, *(_figure(metrics.get(arm, {}).get(figure)) for arm in arms))
        for figure in metrics["aigc"]
    ]
    return _rows(" | ".join(["MOSES, test split", *arms.values()]), rows) + _when("molecules")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}".rstrip("0").rstrip(".") if value else "0"


def obtained() -> str:
    """How near molecules come to what is wished for."""
    wishes = results("molecules")["metrics"]["wishes"]
    rows = [
        (
            f"{name}, {of}",
            f"{one['spearman']:.3f}",
            f"{one['mean_absolute_error']:.3g}",
            f"{one['n']} of {one['asked']}" if "asked" in one else one["n"],
        )
        for name in ("logp", "mw", "qed")
        for of, one in wishes[name].items()
    ]
    head = "wish | Spearman, wished and obtained | mean absolute error | molecules"
    return _rows(head, rows) + _when("molecules")


def molecule_speed() -> str:
    """How fast molecules are made, and in how much memory."""
    speed = results("molecules")["metrics"]["speed"]
    rows = [
        ("molecules/s that pass the critic", _spread(speed["with_critic"], 0)),
        ("molecules/s without it", _spread(speed["without_critic"], 0)),
        ("seconds to the first with its evidence", _spread(speed["first_item_seconds"], 2)),
        ("of a process's first request", f"{speed['first_item_cold_seconds']:.2f}"),
    ]
    rows += [(f"peak MiB, {count} asked for", mib) for count, mib in speed["peak_mib"].items()]
    ingestion = results("molecules")["metrics"]["ingestion"]
    rows += [
        ("molecules/s ingested", _spread(ingestion["molecules_per_second"], 0)),
        ("described in one process", _spread(ingestion["plain_molecules_per_second"], 0)),
        ("ratio, pair by pair", _spread(ingestion["ratio"], 2)),
    ]
    return _rows("one process; ingestion by two | ", rows) + _when("molecules")


def activities() -> str:
    """What is told of activities, beside a forest."""
    rows = []
    for name, every in _sets("activities").items():
        for figure in every["aigc"]:
            ours, theirs = (_measured(every.get(arm), figure) for arm in ("aigc", "forest"))
            chosen = figure == every["measure"]
            rows.append(
                (
                    f"{name}, {figure}",
                    ours,
                    theirs if figure != "covered" else "–",
                    *(
                        (_spread(every["better_by"], 3), f"{every['p']:.3f}")
                        if chosen
                        else ("", "")
                    ),
                )
            )
    head = "test scaffolds | aigc_ray | forest | better by | p"
    return _rows(head, rows) + _when("activities")


def dna() -> str:
    """How sequences are recognised, and how like real ones generated ones are."""
    metrics = results("dna")["metrics"]
    sets = {name: every for name, every in metrics.items() if "js_ratio" in every}
    rows: list[tuple[Any, ...]] = []
    told = {"": "", "plain_cnn": "plain CNN", "boosted_kmers": "boosted words", "chains": "chains"}
    for name, every in sets.items():
        rows += [
            (
                f"{name}, {figure}",
                *(_known(every.get(arm, {}) if arm else every, figure) for arm in told),
            )
            for figure in ("auc", "acc", "ece", "auc_without_relatives")
        ]
    head = " | ".join(["test split, recognised", "aigc_ray", *list(told.values())[1:]])
    first = _rows(head, rows)
    made = {"": "aigc_ray", "chains": "chains alone", "markov_5": "Markov chain of order 5"}
    figures = {
        "js_ratio": "divergence of words, over real against real",
        "motif_places": "of motifs' places, over real against real",
        "motif_gaps": "of distances between motifs, over real against real",
        "told_apart_auc": "told from real by another network, AUC",
        "tstr_over_trtr": "AUC, taught by generated over by real",
        "copy_rate": "copies of training sequences",
        "conditional_acc_raw": "of their class to a plain CNN",
        "conditional_acc": "of their class, as answered",
        "answers_js_ratio": "divergence of words, as answered",
    }
    rows = [
        (f"{name}, {text}", *(_known(every.get(arm, {}) if arm else every, key) for arm in made))
        for name, every in sets.items()
        for key, text in figures.items()
    ]
    second = _rows(" | ".join(["generated", *made.values()]), rows)
    speed = metrics["speed"]
    rows = [
        (
            f"{name} a second",
            *(_spread(speed[f"{name}{of}_per_second"], 0) for of in ("", "_loop")),
            _spread(speed[f"{name}_ratio"], 2),
        )
        for name in ("recognised", "generated")
    ]
    third = _rows("core_promoters | aigc_ray | plain PyTorch loop | ratio, pair by pair", rows)
    return f"{first}\n\n{second}\n\n{third}{_when('dna')}"


def proteins() -> str:
    """What generated backbones are like, and how windows are recognised."""
    metrics = results("proteins")["metrics"]
    arms = {"": "recovered", "answers": "answered", "unedited": "walks, not edited", "real": "real"}
    figures = {
        "raw_bond_ok": "bonds of 3.8 ± .3 Å in the map",
        "bond_ok": "bonds of 3.8 ± .1 Å",
        "clash_rate": "pairs that clash",
        "structures_with_clashes": "structures with a clash",
        "right_handed": "helices that are right-handed",
        "ramachandran_allowed": "torsions allowed",
        "contact_js": "divergence of contacts from test windows",
        "contact_js_train": "from training windows",
        "radius_ratio": "radius over a folded chain's",
        "secondary_js": "divergence of secondary structure",
        "of_its_class": "of the class asked for",
        "plausible": "plausible to the recogniser",
        "nearest_rmsd": "Å to the nearest training window",
        "diversity_rmsd": "Å from each other",
    }
    rows: list[tuple[Any, ...]] = [
        (text, *(_known(metrics.get(arm, {}) if arm else metrics, key) for arm in arms))
        for key, text in figures.items()
    ]
    first = _rows(" | ".join(["generated", *arms.values()]), rows)
    told = {
        "secondary_structure_acc": "secondary structure with .5 Å of error",
        "secondary_structure_acc_rule": "the rule on the same coordinates",
        "secondary_structure_acc_clean": "without error",
        "plausibility_auc": "AUC, real against decoys",
        "plausibility_auc_bent": "bent ones",
        "plausibility_auc_joined": "joined ones",
        "auc": "AUC, class",
        "acc": "right class",
        "recovery_rmsd": "Å, test windows from their maps",
    }
    rows = [(text, _known(metrics, key)) for key, text in told.items()]
    rows += [
        (f"{key.replace('_', ' ')}", f"{value:.2f}")
        for key, value in metrics["speed"].items()
        if key.endswith("seconds")
    ]
    second = _rows("test split, recognised | aigc_ray", rows)
    return f"{first}\n\n{second}{_when('proteins')}"


def _measured(of: dict[str, Any] | None, figure: str) -> str:
    found = (of or {}).get(figure, "–")
    return _spread(found, 3) if isinstance(found, dict) else str(found)


def _sets(of: str) -> dict[str, Any]:
    metrics = results(of)["metrics"]
    return {
        name: every
        for name, every in metrics.items()
        if isinstance(every, dict) and "aigc" in every
    }


def _known(of: dict[str, Any], figure: str) -> str:
    return _spread(of[figure], 3) if figure in of else "–"


def _when(name: str) -> str:
    found = results(name)
    return f"\n\n{_machine(found)}, {found['date'][:10]}."


WITHOUT = "aigc_without_adversary"
COLUMNS = (("ms", ".0f"), ("speedup", ".2f"))
TABLES = {
    "quickstart": quickstart,
    "train_speed": train_speed,
    "step_speed": step_speed,
    "ingest_speed": ingest_speed,
    "recognised": recognised,
    "generated": generated,
    "prognosis": prognosis,
    "cohorts": cohorts,
    "gains": gains,
    "prognosis_speed": prognosis_speed,
    "moses": moses,
    "obtained": obtained,
    "activities": activities,
    "molecule_speed": molecule_speed,
    "dna": dna,
    "proteins": proteins,
}

if __name__ == "__main__":
    main()
