"""One training through Ray for train_speed.py: prints its images a second after the warm-up."""

from __future__ import annotations

import json
import sys

from aigc_ray import config, storage
from aigc_ray.train import train


def main() -> None:
    data, warm_up, *settings = sys.argv[1:]
    pairs = config.parse(settings)
    # The first look is where the warm-up ends; the last, at the end.
    steps, batch = int(pairs["steps"]), int(pairs["batch_size"])
    pairs["validate_every"] = warm_up
    summary = train("diagnosis", data, pairs, register=False)
    state = storage.read_json(storage.join(summary["uri"], "progress.json"))
    first, last = state["history"][0], state["history"][-1]
    seconds = (last["elapsed"] - last["aside"]) - (first["elapsed"] - first["aside"])
    print(json.dumps((steps - first["step"]) * batch / seconds))


if __name__ == "__main__":
    main()
