"""Answers for files from the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path

from aigc_ray.predict import predict
from tests.service import png, register


def test_another_model_of_the_same_name_answers_for_itself(home, tmp_path, monkeypatch):
    """A process keeps a model open: by its content, not by its name."""
    picture = tmp_path / "one.png"
    picture.write_bytes(png(0))
    told = []
    for seed in (1, 2):
        place = tmp_path / f"home{seed}"
        monkeypatch.setenv("AIGC_HOME", str(place))
        assert register(seed, str(place)) == 1
        found = predict("diagnosis:1", str(picture), str(tmp_path / "out.jsonl"))
        (answer,) = map(json.loads, Path(found["out"]).read_text().splitlines())
        told.append((found["model"]["sha256"], answer["probabilities"]))
    assert told[0][0] != told[1][0] and told[0][1] != told[1][1]
