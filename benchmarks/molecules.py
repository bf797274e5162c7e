"""What is generated beside MOSES' test split, by its own measures; wishes; and speed.

    python -m benchmarks.molecules FOLDER MODEL --chemnet FILE [--parts PART ...]

MODEL is one trained on the MOSES training split (`jobs/ingest.py molecules`, `jobs/train.py`); the
copy of its generator that had as many steps by likelihood alone is measured in the same run. 30,000
samples each: of raw samples (`aigc`, `aigc_without_adversary`) those that are molecules; of
`aigc_passed` those that the critic lets pass, as in serving. No filter chooses among them.
FOLDER keeps what the test split gives, which takes twenty minutes of two cores once. The published
rows are those of the benchmark's own README (Polykovskiy et al. 2020).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from aigc_ray import catalogue, cluster, registry, tables
from aigc_ray.ingest import ingest
from aigc_ray.model import Model
from aigc_ray.task import Networks
from aigc_ray.tasks.molecules import chemistry, data, metrics, speaker, wishes
from aigc_ray.tasks.molecules.task import Molecules
from benchmarks import chemnet, record

COMMAND = "python -m benchmarks.molecules FOLDER MODEL --chemnet FILE"
SAMPLES = 30_000  # the Fréchet distance hangs on their number
SEED = 1
PARTS = ("moses", "wishes", "speed", "ingestion")
INGESTED, PAIRS = 30_000, 3
# Molecular Sets, README of the benchmark: raw validity, as the rest of 30,000 samples.
PUBLISHED = {
    "latentgan": {
        "valid_raw": 0.897, "unique_10k": 0.997, "fcd_test": 0.297, "filters": 0.974,
        "novelty": 0.950, "scaf_test": 0.887, "snn_test": 0.537, "intdiv": 0.857,
    },
    "charrnn": {
        "valid_raw": 0.975, "unique_10k": 0.999, "fcd_test": 0.073, "filters": 0.994,
        "novelty": 0.842, "scaf_test": 0.924, "snn_test": 0.602, "intdiv": 0.856,
    },
}  # fmt: skip


# --- the test split -----------------------------------------------------------------------------


class Reference:
    """What is known of real molecules: the split's own, computed once and kept in a folder."""

    def __init__(self, folder: Path, network: chemnet.ChemNet) -> None:
        source = catalogue.fetch("moses")
        self.train = {row["SMILES"] for row in tables.read(f"{source}/train.csv.gz") if row}
        kept, counts = folder / "moses_test.npz", folder / "moses_test.json"
        if not kept.exists():
            molecules = metrics.molecules(
                [row["SMILES"] for row in tables.read(f"{source}/test.csv.gz") if row]
            )
            smiles = [chemistry.smiles(one) for one in molecules]
            mean, spread = chemnet.statistics(network, smiles)
            bits = np.stack([chemistry.fingerprint(one) for one in molecules])
            counts.write_text(
                json.dumps(
                    {
                        "fragments": metrics.counted(molecules, metrics.fragments),
                        "scaffolds": metrics.counted(molecules, metrics.scaffolds),
                    }
                )
            )
            np.savez(kept, mean=mean, spread=spread, bits=bits)
        with np.load(kept) as file:
            self.gaussian = file["mean"], file["spread"]
            self.bits = np.unpackbits(file["bits"], axis=1)
        self.counts: dict[str, dict[str, int]] = json.loads(counts.read_text())


def measured(
    smiles: Sequence[str], valid: float, reference: Reference, network: chemnet.ChemNet
) -> dict[str, float]:
    """MOSES' measures of molecules, each canonical, doubles among them."""
    made = metrics.molecules(smiles)
    bits = metrics.fingerprints(made)
    unique = set(smiles)
    found = {
        "n": len(smiles),
        "valid_raw": valid,
        "valid": len(made) / len(smiles),
        "unique_1k": len(set(smiles[:1000])) / len(smiles[:1000]),
        "unique_10k": len(set(smiles[:10_000])) / len(smiles[:10_000]),
        "novelty": len(unique - reference.train) / len(unique),
        "filters": metrics.passing(made),
        "fcd_test": metrics.frechet(chemnet.statistics(network, smiles), reference.gaussian),
        "snn_test": metrics.nearest(bits, reference.bits),
        "intdiv": metrics.diversity(bits),
    }
    for name, parts in (("frag", metrics.fragments), ("scaf", metrics.scaffolds)):
        known = reference.counts["fragments" if name == "frag" else "scaffolds"]
        found[f"{name}_test"] = metrics.cosine(known, metrics.counted(made, parts))
    return {name: round(float(value), 5) for name, value in found.items()}


# --- samples ------------------------------------------------------------------------------------


def with_generator(networks: Networks, name: str) -> Networks:
    """The networks with another of them as the generator."""
    return Networks({**networks, "generator": networks[name]})


def raw(networks: Networks, length: int) -> tuple[list[str], float]:
    """Canonical SMILES of so many raw samples as are molecules, and the share that is."""
    voice = speaker.Speaker(networks, length)
    wanted = wishes.wanted({"n": 1, "seed": SEED, "critic": False}, ())
    texts: list[str] = []
    for start in range(0, SAMPLES, 1000):
        numbers = np.arange(start, start + 1000)
        codes = voice.codes(wanted, numbers, voice.wishes(wanted, numbers), None)
        with chemistry.quiet():
            found = [chemistry.parsed(text) for text in data.smiles_of(codes)]
        texts += [chemistry.smiles(one) for one in found if one is not None]
    return texts, len(texts) / SAMPLES


def passed(networks: Networks, length: int) -> list[str]:
    """As many that the critic lets pass, doubles left out, as in serving."""
    voice = speaker.Speaker(networks, length)
    wanted = wishes.wanted({"n": 1, "seed": SEED}, ())
    plan = speaker.plain(voice, wanted)
    every = speaker.candidates(voice, wanted, plan, 20 * SAMPLES, Counter())
    return [one.smiles for one in islice(every, SAMPLES)]


def moses(model: Model, folder: Path, weights: Path, say: Callable[[str], None]) -> dict[str, Any]:
    network = chemnet.ChemNet(weights).eval()
    reference = Reference(folder, network)
    networks, length = model.members[0], model.task.schema[data.CODES].shape[0]
    rows: dict[str, Any] = dict(PUBLISHED)
    arms = {"aigc": networks}
    if "likelihood" in networks:
        arms["aigc_without_adversary"] = with_generator(networks, "likelihood")
    for name, which in arms.items():
        rows[name] = measured(*raw(which, length), reference, network)
        say(f"{name}: {rows[name]}")
    if "critic" in networks:
        share = rows["aigc"]["valid_raw"]
        rows["aigc_passed"] = measured(passed(networks, length), share, reference, network)
        say(f"aigc_passed: {rows['aigc_passed']}")
    return rows


# --- wishes -------------------------------------------------------------------------------------


def wished(model: Model, say: Callable[[str], None]) -> dict[str, Any]:
    """How well what was wished for is obtained, of samples that nothing was chosen among, and of
    molecules as they are answered, from which those too far from the wish are left out."""
    networks, length = model.members[0], model.task.schema[data.CODES].shape[0]
    voice = speaker.Speaker(networks, length)
    found: dict[str, Any] = {}
    for place, name in ((0, "logp"), (1, "qed"), (3, "mw")):
        column = voice.prior[:, place]
        targets, obtained = [], []
        aims = np.quantile(column, np.linspace(0.02, 0.98, 40))
        for number, aim in enumerate(aims):
            asked: dict[str, Any] = {
                "n": 1,
                "seed": SEED + number,
                name: float(aim),
                "critic": False,
            }
            wanted = wishes.wanted(asked, ())
            plan = speaker.plain(voice, wanted)
            for one in speaker.candidates(voice, wanted, plan, 32, Counter()):
                targets.append(float(aim))
                obtained.append(chemistry.property_of(one.molecule, name))
        found[name] = {"samples": _obtained(targets, obtained)}
        targets, obtained = [], []
        for number, aim in enumerate(aims):
            request = {"n": 20, "seed": SEED + number, name: float(aim), "evidence": True}
            for item in model.generate(**request):
                if isinstance(item, dict):
                    targets.append(float(aim))
                    obtained.append(item["properties"][name])
        found[name]["answers"] = _obtained(targets, obtained) | {"asked": 20 * len(aims)}
        say(f"{name}: {found[name]}")
    kept = total = 0
    for text in SCAFFOLDS:
        part = wishes.marked(text, "scaffold")
        for item in model.generate(n=100, seed=SEED, scaffold=text, evidence=False, filters=[]):
            if isinstance(item, dict):
                total += 1
                whole = chemistry.read(item["smiles"])
                kept += whole.HasSubstructMatch(part.molecule)
    found["scaffold"] = {"kept": kept / max(1, total), "n": total, "asked": 100 * len(SCAFFOLDS)}
    say(f"scaffold: {found['scaffold']}")
    return found


def _obtained(targets: list[float], obtained: list[float]) -> dict[str, float]:
    error = np.abs(np.array(targets) - np.array(obtained))
    return {
        "spearman": round(float(spearmanr(targets, obtained).statistic), 4),
        "mean_absolute_error": round(float(error.mean()), 4),
        "n": len(targets),
    }


SCAFFOLDS = (
    "[*]c1ccc2[nH]ccc2c1", "O=C(N[*])c1ccc([*])cc1", "[*]N1CCN([*])CC1", "[*]c1ncc([*])s1",
    "[*]C1CCN(C(=O)c2ccccc2)CC1",
)  # fmt: skip


# --- speed --------------------------------------------------------------------------------------


def speed(model: Model, say: Callable[[str], None]) -> dict[str, Any]:
    """Molecules a second in this process, each valid, canonical and new, in three runs; and how
    soon the first of a request is there, of the process's first request and of five later ones."""
    networks, length = model.members[0], model.task.schema[data.CODES].shape[0]
    found: dict[str, Any] = {"busy_before": round(record.busy(), 3)}
    firsts = []
    for seed in range(6):
        began = time.perf_counter()
        next(iter(model.task.generate(model, {"n": 1000, "seed": seed})))
        firsts.append(time.perf_counter() - began)
    found["first_item_cold_seconds"] = firsts[0]  # a replica has one made before it answers
    found["first_item_seconds"] = record.mean(firsts[1:])
    say(f"first: {firsts}")
    for name, critic in (("with_critic", True), ("without_critic", False)):
        rates = []
        for seed in range(3):
            wanted = wishes.wanted({"n": 1, "seed": seed, "critic": critic}, ())
            voice = speaker.Speaker(networks, length)
            plan = speaker.plain(voice, wanted)
            began = time.perf_counter()
            every = speaker.candidates(voice, wanted, plan, 10**6, Counter())
            count = sum(1 for _ in islice(every, 10_000))
            rates.append(count / (time.perf_counter() - began))
        found[name] = record.mean(rates)
        say(f"{name}: {found[name]}")
    held: dict[int, float] = {}
    for count in (2_000, 20_000):  # the smaller one pays for what is held once
        with record.PeakMemory() as memory:
            for _ in model.task.generate(model, {"n": count // 2, "filters": [], "seed": 1}):
                pass
            for _ in model.task.generate(model, {"n": count // 2, "filters": [], "seed": 2}):
                pass
        held[count] = memory.bytes / 2**20
    found["peak_mib"] = {str(count): round(mib, 1) for count, mib in held.items()}
    say(f"memory: {found['peak_mib']}")
    return found


# --- ingestion ----------------------------------------------------------------------------------


def ingestion(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Molecules a second from SMILES to a data set, beside the same function in one process, which
    reads and describes them and throws the result away; in turns, within a Ray that runs."""
    lines = []
    for row in islice(tables.read(f"{catalogue.fetch('moses')}/train.csv.gz"), INGESTED):
        if row:
            lines.append(row["SMILES"])
    source = folder / "some.smi"
    source.write_text("\n".join(lines))
    few = folder / "few.smi"
    few.write_text("\n".join(lines[:500]))
    found: dict[str, Any] = {"molecules": len(lines), "busy_before": round(record.busy(), 3)}
    plains, ours, ratios = [], [], []
    with cluster.session(), tempfile.TemporaryDirectory() as temporary:
        ingest(Molecules(), str(few), f"{temporary}/warm")
        for pair in range(PAIRS):
            began = time.perf_counter()
            task, pieces = Molecules().survey(str(source))
            count = sum(1 for piece in pieces for _ in task.read(piece))
            plains.append(count / (time.perf_counter() - began))
            began = time.perf_counter()
            ingest(Molecules(), str(source), f"{temporary}/{pair}")
            ours.append(count / (time.perf_counter() - began))
            ratios.append(ours[-1] / plains[-1])
            say(f"ingestion: {ours[-1]:.0f}/s, plain {plains[-1]:.0f}/s")
    return found | {
        "molecules_per_second": record.mean(ours),
        "plain_molecules_per_second": record.mean(plains),
        "ratio": record.mean(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("--chemnet", type=Path, help="the file of ChemNet's weights")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = Model.open(registry.fetch(options.model))
    path = record.RESULTS / "molecules.json"
    kept: dict[str, Any] = json.loads(path.read_text())["metrics"] if path.exists() else {}
    if "moses" in options.parts:
        kept["moses"] = moses(model, options.folder, options.chemnet, print)
    if "wishes" in options.parts:
        kept["wishes"] = wished(model, print)
    if "speed" in options.parts:
        kept["speed"] = speed(model, print)
        kept["molecules_per_second"] = kept["speed"]["without_critic"]["mean"]
    kept["training"] = model.info.get("training", {})
    if "ingestion" in options.parts:
        kept["ingestion"] = ingestion(options.folder, print)
    record.save("molecules", kept, seeds=[SEED], command=COMMAND)


if __name__ == "__main__":
    main()
