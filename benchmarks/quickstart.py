"""Seconds a phase and peak memory of `aigc-ray quickstart --exit`, from an empty home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from aigc_ray.cluster import STORE_BYTES
from aigc_ray.quickstart import FOLDED, TOLD
from benchmarks.record import PeakMemory, save


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "AIGC_HOME": home, "XDG_CACHE_HOME": f"{home}/cache"}
        command = [sys.executable, "-m", "aigc_ray", "quickstart", "--exit", "--json"]
        command += ["--port", "8017"]
        with PeakMemory() as memory:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
    found = json.loads(done.stdout)
    metrics = {
        "seconds": found["seconds"],
        "peak_memory_gib": round((memory.bytes + STORE_BYTES) / 2**30, 2),
        "test": {name: found["metrics"]["test"][name] for name in TOLD},
        "prognosis": {
            name: found["prognosis"]["metrics"]["test"][name]
            for name in ("harrell_c", "ibs", "d_calibration_p")
        },
        "molecules": {"nats": found["molecules"]["metrics"]["test"]["nats"]},
        "dna": {"auc": found["dna"]["metrics"]["test"]["auc"]},
        "proteins": {name: found["proteins"]["metrics"]["test"][name] for name in FOLDED},
        "synthetic": {
            "diagnosis": found["synthetic"],
            **{task: found[task]["synthetic"] for task in ("dna", "proteins")},
        },
        "training": found["training"],
    }
    save("quickstart", metrics, seeds=[0], command="python -m benchmarks.quickstart")


if __name__ == "__main__":
    main()
