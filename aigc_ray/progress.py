"""What a person sees of a run while it goes."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from typing import Any

from aigc_ray import storage
from aigc_ray.errors import UserError


class Progress:
    """Prints a run's progress to stderr while it goes: a bar on a terminal, else plain lines."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.join(uri, "progress.json")
        self.stop = threading.Event()
        self.shown = ""
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self._print(terminal=False)

    def _watch(self) -> None:
        terminal = sys.stderr.isatty()
        while not self.stop.wait(2.0 if terminal else 10.0):
            self._print(terminal)

    def _print(self, terminal: bool) -> None:
        try:
            state = storage.read_json(self.uri)
        except (UserError, OSError) as fault:  # not written yet, or the store is busy
            logging.getLogger(__name__).debug("no progress to show: %s", fault)
            return
        line = line_of(state)
        if line == self.shown:
            return
        self.shown = line
        print(
            f"\r{line}\033[K" if terminal else line, end="" if terminal else "\n", file=sys.stderr
        )


def line_of(state: Mapping[str, Any]) -> str:
    """One line: step, share, rate, time left, losses, the last validation metrics."""
    entry, steps = state["now"], state["steps"]
    left = round(entry["seconds_left"] or 0)
    known = {"step", "strength", "rows_per_second", "seconds_left", "validation"}
    known |= {"elapsed", "aside"}
    losses = " ".join(f"{k} {v:.3f}" for k, v in entry.items() if k not in known and v is not None)
    validated = next((e["validation"] for e in reversed(state["history"])), None) or {}
    metrics = " ".join(f"{k} {v:.4f}" for k, v in validated.items() if v is not None)
    return (
        f"step {entry['step']}/{steps} ({100 * entry['step'] // steps} %), "
        f"{entry['rows_per_second']:.0f} rows/s, {left // 60}:{left % 60:02d} left; {losses}"
        + (f"; validation {metrics}" if metrics else "")
    )
