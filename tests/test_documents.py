"""What the documents say is what was measured, and what they show runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from aigc_ray.cli import _parser
from benchmarks import tables

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("document", tables.DOCUMENTS)
def test_tables_are_those_of_the_result_files(document):
    assert tables.filled(document) == (ROOT / document).read_text(), "run `make results`"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=str)
def test_a_result_file_says_how_it_came_about(path):
    found = json.loads(path.read_text())
    needed = {"benchmark", "command", "date", "commit", "machine", "versions", "seeds", "metrics"}
    assert needed <= set(found) and found["benchmark"] == path.stem
    script = re.search(r"benchmarks\.(\w+)", found["command"])
    assert script and (ROOT / "benchmarks" / f"{script[1]}.py").exists()


def test_the_commands_of_the_readme_are_understood():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^aigc-ray (.+)$", text, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        _, rest = _parser().parse_known_args(command.split())
        assert all("=" in word or word.endswith(".npz") for word in rest)


def test_every_document_says_once_that_this_is_no_medical_device():
    assert (ROOT / "README.md").read_text().count("not a medical device") == 1
    assert (ROOT / "aigc_ray/serve/page/index.html").read_text().count("not a medical device") == 1


def test_nothing_generated_is_tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    sizes = {name: (ROOT / name).stat().st_size for name in done.stdout.split()}
    ours = [name for name in sizes if name.startswith("aigc_ray/pretrained/")]
    assert sum(sizes[name] for name in ours) < 10_000_000  # what the package comes with
    assert not [name for name in sizes.keys() - ours if sizes[name] > 500_000]
    assert not [name for name in done.stdout.split() if name.endswith((".npz", ".parquet", ".pt"))]
