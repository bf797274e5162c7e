"""One page per run that a person can judge it by; opens offline."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from aigc_ray.card import PHANTOMS, whose

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .25rem .8rem; text-align: left;
  border-bottom: 1px solid #ddd } td.n { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1rem 1rem 1rem 0; display: inline-block; vertical-align: top }
img { max-width: 100%; image-rendering: auto } img.pixels { image-rendering: pixelated }
figcaption { color: #555; font-size: .9rem; max-width: 34rem }
.note { background: #fff6d6; padding: .6rem 1rem; border-left: 4px solid #d9a400 }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: .85rem }
"""


def render(
    info: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[str, bytes]],
    objective: str,
    table: str = "",
) -> bytes:
    """The page.

    Args:
        info: the contents of model.json.
        history: the figures at each validation.
        pictures: (caption, PNG) pairs of the task.
        objective: the metric that chose the model.
        table: further HTML, e.g. a sweep's trials.
    """
    training = info.get("training", {})
    title = f"{info['task']}: {info.get('run', 'evaluation')}"
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>",
        "<p class='note'>This is research software, not a medical device.</p>",
    ]
    if info.get("data", {}).get("synthetic"):
        parts.append(f"<p class='note'>{PHANTOMS}</p>")
    parts += [f"<p class='note'>{escape(limit)}.</p>" for limit in info.get("limits", [])]
    parts += ["<h2>Metrics</h2>", metrics_table(info.get("metrics", {}), info.get("intervals", {}))]
    if info.get("intervals"):
        parts.append("<p>In brackets: 95 % intervals, patients or rows drawn again.</p>")
    for split, opinions in info.get("opinions", {}).items():
        parts.append(f"<h2>What the adversarial part adds, {escape(split)}</h2>")
        names = whose(info)
        parts.append(metrics_table({names[name]: found for name, found in opinions.items()}))
    for split, columns in info.get("subgroups", {}).items():
        for column, values in columns.items():
            parts.append(f"<h2>By {escape(column)}, {escape(split)}</h2>{metrics_table(values)}")
    for heading, key in FOUND.items():
        if info.get(key):
            parts.append(f"<h2>{heading}</h2>{facts_table(info[key])}")
    if training:
        kept = training.get("kept") or f"step {training['chosen_at_step']}"
        parts.append(
            f"<p>{training['steps']} steps of {training['batch_size']} rows on "
            f"{training['workers']} workers in {training['seconds']:.0f} s "
            f"({escape(training['machine'])}); {training['rows_per_second']:.0f} rows/s; "
            f"kept by validation {escape(objective)}: "
            f"{escape(kept)}.</p>"
        )
    parts.append(table)
    for caption, picture in [*curves(history, objective), *pictures]:
        kind = "pixels" if "images" in caption else ""
        parts.append(
            f"<figure><img class='{kind}' alt='{escape(caption)}' src='data:image/png;base64,"
            f"{base64.b64encode(picture).decode()}'><figcaption>{escape(caption)}</figcaption>"
            "</figure>"
        )
    settings = {"configuration": info.get("configuration"), "data": info.get("data")}
    parts.append(f"<h2>Settings</h2><pre>{escape(json.dumps(settings, indent=2))}</pre></html>")
    return "\n".join(parts).encode()


FOUND = {
    "Whether learning from generated rows too is heard": "generated_rows",
    "How answers are given or withheld": "calibration",
    "What is generated": "generation",
    "Whether explanations can be trusted": "explanation",
}


def metrics_table(
    metrics: Mapping[str, Mapping[str, Any]],
    intervals: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> str:
    """Metrics as rows; splits, opinions or groups as columns."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    head = "".join(f"<th>{escape(column)}</th>" for column in metrics)
    rows = ""
    for name in names:
        cells = ""
        for column, values in metrics.items():
            ends = (intervals or {}).get(column, {}).get(name)
            between = f" ({_number(ends[0])}–{_number(ends[1])})" if ends else ""
            cells += f"<td class='n'>{_number(values.get(name))}{between}</td>"
        rows += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def facts_table(facts: Mapping[str, Any]) -> str:
    """Names and values; a figure with its interval, anything else that is nested as JSON."""
    rows = ""
    for name, value in facts.items():
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            text = f"{_number(value['value'])} ({_number(value['low'])}–{_number(value['high'])})"
        elif isinstance(value, (Mapping, list, tuple)):
            text = json.dumps(value)
        else:
            text = _number(value)
        rows += f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(text)}</td></tr>"
    return f"<table>{rows}</table>"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def curves(history: Sequence[Mapping[str, Any]], objective: str) -> list[tuple[str, bytes]]:
    """The losses and the objective over the steps."""
    if not history:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [entry["step"] for entry in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name in ("critic", "generator", "recogniser", "beside"):
        values = [entry.get(name) for entry in history]
        if any(value is not None for value in values):
            left.plot(steps, values, marker=".", label=name)
    left.set(xlabel="step", ylabel="loss")
    left.legend(fontsize=8)
    right.plot(steps, [entry["validation"][objective] for entry in history], marker=".")
    right.set(xlabel="step", ylabel=f"validation {objective}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return [("Losses and validation over the steps", buffer.getvalue())]
