"""One page per run that a person can judge it by; opens offline."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

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
        parts.append(
            "<p class='note'>The training images are phantoms drawn by the program; "
            "nothing here was learned from patients.</p>"
        )
    parts += ["<h2>Metrics</h2>", metrics_table(info.get("metrics", {}))]
    if training:
        parts.append(
            f"<p>{training['steps']} steps of {training['batch_size']} rows on "
            f"{training['workers']} workers in {training['seconds']:.0f} s "
            f"({escape(training['machine'])}); {training['images_per_second']:.0f} images/s; "
            f"the recogniser is that of step {training['chosen_at_step']}, "
            f"chosen by validation {escape(objective)}.</p>"
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


def metrics_table(metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    """Splits as rows, metrics as columns."""
    names = list(dict.fromkeys(name for split in metrics.values() for name in split))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{escape(split)}</th>"
        + "".join(f"<td class='n'>{_number(values.get(name))}</td>" for name in names)
        + "</tr>"
        for split, values in metrics.items()
    )
    return f"<table><tr><th>split</th>{head}</tr>{rows}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def curves(history: Sequence[Mapping[str, Any]], objective: str) -> list[tuple[str, bytes]]:
    """The losses and the objective over the steps."""
    if not history:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [entry["step"] for entry in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name in ("critic", "generator", "recogniser"):
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
