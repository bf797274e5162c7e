"""One training through Ray for train_speed.py: prints its images a second after the warm-up."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from aigc_ray import config, runs, storage
from aigc_ray.train import train


def main() -> None:
    data, warm_up, *settings = sys.argv[1:]
    pairs = config.parse(settings)
    marks: list[dict[str, Any]] = []
    threading.Thread(target=watch, args=(int(warm_up), marks), daemon=True).start()
    summary = train("diagnosis", data, pairs, register=False)
    last = storage.read_json(storage.join(summary["uri"], "progress.json"))["history"][-1]
    if not marks or marks[0]["step"] >= last["step"]:
        sys.exit(f"no progress was seen between step {warm_up} and the end: train for more steps")
    first = marks[0]
    seconds = (last["elapsed"] - last["aside"]) - (first["elapsed"] - first["aside"])
    images = (last["step"] - first["step"]) * int(pairs["batch_size"])
    print(json.dumps(images / seconds))


def watch(warm_up: int, marks: list[dict[str, Any]]) -> None:
    """Note the first progress of this home's only run that is past the warm-up.

    When it is read does not matter: the entry holds the step and the time that belong together.
    """
    while not marks:
        time.sleep(0.5)
        for run in runs.listed():
            progress = runs.show(run["name"])["progress"]
            if progress and progress["now"]["step"] >= warm_up:
                marks.append(progress["now"])


if __name__ == "__main__":
    main()
