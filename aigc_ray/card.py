"""The model card: what a model is for, what it must not be used for, how it fared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_DEVICE = "This is not a medical device."
FORBIDDEN = (
    "It must not be used to diagnose, treat, triage or advise a person, nor as the only ground of "
    "any decision about a patient; what it generates must not enter a patient's record."
)
PHANTOMS = (
    "The training data are phantoms, all or some of them: computed by a program, not taken from "
    "patients or experiments. What is measured here says nothing about these."
)


def card(model: Mapping[str, Any]) -> str:
    """Markdown made from a model.json; keys that are absent leave their part out or unknown."""
    data = model.get("data") or {}
    parts = [
        f"# {_text(model.get('task') or 'A model')}",
        PHANTOMS if data.get("synthetic") else "",
        f"**{NO_DEVICE}** {FORBIDDEN}",
        _section(
            "Intended use", _text(model.get("intended_use") or "Research on the method only.")
        ),
        _section(
            "How it fared",
            _metrics(model.get("metrics") or {}, model.get("intervals") or {}),
            _opinions(model),
            _seeds(model),
        ),
        _section("By subgroup", _subgroups(model.get("subgroups") or {})),
        _section("Calibration", _calibration(model)),
        _section("Generation", _generation(model.get("generation"))),
        _section("Explanation", _explanation(model.get("explanation"))),
        _section("Data", _data(data)),
        _section("Training", _facts(model.get("training") or {})),
        _section("Limits", _limits(model.get("limits") or [])),
        _section("Origin", _facts(_origin(model))),
        "The schema and the full configuration are in model.json.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, *paragraphs: str) -> str:
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    return f"## {title}\n\n{text}" if text else ""


def _metrics(
    metrics: Mapping[str, Mapping[str, Any]], intervals: Mapping[str, Mapping[str, Any]]
) -> str:
    """One row a metric, one column a split; with its 95 % interval where there is one."""
    splits = [split for split, values in metrics.items() if values]
    if not splits:
        return "It was not evaluated."

    def cell(split: str, name: str) -> str:
        text, ends = _text(metrics[split].get(name)), intervals.get(split, {}).get(name)
        return text if not ends else f"{text} ({_text(ends[0])} to {_text(ends[1])})"

    names = dict.fromkeys(name for split in splits for name in metrics[split])
    rows = [["metric", *splits], ["---"] * (len(splits) + 1)]
    rows += [[name, *(cell(split, name) for split in splits)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _opinions(model: Mapping[str, Any]) -> str:
    """What the adversarial part adds: each opinion alone, beside their mean."""
    names, lines = whose(model), []
    for split, every in (model.get("opinions") or {}).items():
        for name, figures in every.items():
            known = ", ".join(f"{key} {_text(value)}" for key, value in figures.items())
            lines.append(f"- {split}, {names[name]}: {known}")
    gains = _gains(model.get("generated_rows") or {}, "learning from generated rows too")
    lines += [f"- {name}: {value}" for name, value in gains.items()]
    return "\n".join(lines)


def whose(model: Mapping[str, Any]) -> dict[str, str]:
    """What a model's opinions are, by name."""
    kinds = (
        "the recogniser of real rows alone, without the adversarial part",
        "the recogniser that learned from generated rows too",
    )
    heard = bool((model.get("generated_rows") or {}).get("heard"))
    return {
        "recogniser": kinds[heard],
        "beside": f"{kinds[not heard]}, which is not heard",
        "critic": "the critic's class head alone",
        "mean": "the mean of recogniser and critic",
    }


def _subgroups(subgroups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    lines = [
        f"- {split}, {column} {_text(value)}: "
        + ", ".join(f"{key} {_text(one)}" for key, one in figures.items())
        for split, columns in subgroups.items()
        for column, values in columns.items()
        for value, figures in values.items()
    ]
    return "\n".join(lines)


def _generation(generation: Mapping[str, Any] | None) -> str:
    if not generation:
        return "What it generates was not measured."
    known = {}
    for name, value in generation.items():
        if isinstance(value, Mapping):
            ends = f"{_text(value.get('low'))} to {_text(value.get('high'))}"
            known[name] = f"{_text(value.get('value'))} ({ends})"
        elif name != "copies":
            known[name] = _text(value)
    warning = "**It copies training rows and cannot be promoted.**"
    return "\n\n".join([*([warning] if generation.get("copies") else []), _facts(known)])


def _explanation(gate: Mapping[str, Any] | None) -> str:
    if not gate:
        return "There is none."
    if "largest_miss" in gate:
        told = (
            f"Attributions by {gate['method']}; what they add up to misses the difference they "
            f"explain by {_text(gate['largest_miss'])} at most."
        )
        return told if gate["passes"] else f"{told} They are withheld."
    correlation = ", ".join(_text(value) for value in gate["correlation"])
    if len(gate["correlation"]) == 1:
        tried = (
            f"Attributions by {gate['method']}. Rank correlation with those of a network that "
            f"learned nothing: {correlation}."
        )
        return tried if gate["passes"] else f"{tried} So they are withheld."
    tried = (
        f"Heat maps by {gate['method']}. Rank correlation with the map of a network whose layers "
        f"are made random one after the other, from the output down: {correlation}."
    )
    if gate["passes"]:
        return f"{tried} They hang on what was learned."
    return f"{tried} They do not hang on what was learned, so they are withheld."


def _seeds(model: Mapping[str, Any]) -> str:
    seeds = model.get("seeds")
    if seeds in (None, []):
        return ""
    seeds = seeds if isinstance(seeds, list) else [seeds]
    return f"Seeds: {', '.join(map(_text, seeds))}."


def _calibration(model: Mapping[str, Any]) -> str:
    calibration = model.get("calibration")
    metrics = (model.get("metrics") or {}).get("test") or {}
    if calibration is None and (p := metrics.get("d_calibration_p")) is not None:
        word = "are not shown to be miscalibrated" if p > 0.05 else "are miscalibrated"
        return f"By D-calibration on the test split (p = {_text(p)}) its curves {word}."
    if calibration is None:
        return "It is not calibrated: do not read its scores as probabilities."
    if not isinstance(calibration, Mapping):
        return _text(calibration)
    apart = ("points", "gain", "gain_elsewhere")
    known = {key: value for key, value in calibration.items() if key not in apart}
    known |= _gains(calibration, "the critic's part")
    for name, point in (calibration.get("points") or {}).items():
        known[f"operating point of {name}"] = (
            f"called from {_text(point['threshold'])} on, sensitivity "
            f"{_text(point['sensitivity'])}, specificity {_text(point['specificity'])}"
        )
    return _facts(known)


def _gains(found: Mapping[str, Any], what: str) -> dict[str, str]:
    """What AUC something added, on held-back rows and on them perturbed."""
    rows = {"gain": "held-back rows", "gain_elsewhere": "held-back rows, perturbed"}
    return {
        f"AUC that {what} added on {name}": (
            f"{_text(gain['value'])} ({_text(gain['low'])} to {_text(gain['high'])})"
        )
        for key, name in rows.items()
        if (gain := found.get(key))
    }


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return "Unknown."
    rows = data.get("rows")
    if isinstance(rows, Mapping):
        rows = ", ".join(f"{split} {_text(count)}" for split, count in rows.items())
    known = {
        "name": data.get("name"),
        "address": data.get("uri"),
        "SHA-256 of its manifest": data.get("sha256"),
        "rows": rows,
        "licence": data.get("licence"),
        "note": data.get("note"),
    }
    return _facts(known)


def _limits(limits: Any) -> str:
    texts = [_text(limit) for limit in (limits if isinstance(limits, list) else [limits])]
    # The sentence stands above, once.
    return "\n".join(f"- {text}" for text in texts if text != NO_DEVICE)


def _origin(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"created": model.get("created"), "code version": model.get("code_version")}


def _facts(facts: Mapping[str, Any]) -> str:
    known = [(name, value) for name, value in facts.items() if value is not None]
    return "\n".join(f"- {str(name).replace('_', ' ')}: {_text(value)}" for name, value in known)


def _text(value: Any) -> str:
    """A value on one line, safe in a table's cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split()).replace("|", "\\|")
