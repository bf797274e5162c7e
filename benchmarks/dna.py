"""Sequences of DNA recognised and generated, beside k-mers, a plain CNN and Markov chains.

    python -m benchmarks.dna FOLDER [--sets SET ...] [--seeds N] [--parts PART ...]

Human core promoters (70 letters) and promoters with a TATA box (300 letters) of GUE, with their own
splits, less the sequences that lie in two of them on either strand. A seed begins every training
anew. Of the opponents, gradient boosting reads counts of words of 1 to 5 letters of both strands,
and the plain CNN, with as many steps of as many rows, one strand as it is given; the latter also
judges, as one who has nothing to do with the generator, of what class generated sequences are.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from aigc_ray import assess, catalogue, fidelity, noise, registry, rows
from aigc_ray.adversary import Adversary
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.model import Model
from aigc_ray.task import Batch, Networks, Stage
from aigc_ray.tasks.dna import data, design, metrics
from aigc_ray.tasks.dna.chains import Chains, flipped
from aigc_ray.tasks.dna.data import LABEL, SEQUENCE
from aigc_ray.tasks.dna.networks import Recogniser, image
from aigc_ray.tasks.dna.task import Dna
from aigc_ray.train import train
from benchmarks import record

COMMAND = "python -m benchmarks.dna FOLDER"
SETS = {"core_promoters": 3000, "tata_300": 600}  # steps of 64 rows
SEEDS, BATCH = 3, 64
TRANSFERRED = 300  # steps of a recogniser that learns from generated rows, and of one from real
TOLD_APART = 300  # steps of a network that learns to tell generated rows from real ones
TAUGHT = ("aigc", "chains", "markov_5")  # whose sequences a recogniser learns from
DRAWS = 3  # of generated sets that a divergence is the mean over
ANSWERS = 500  # sequences of a class that are asked for
TURNS = 9  # in which speeds are measured
SHARED = 24  # letters that two sequences have in common, from which they count as relatives
Say = Callable[[str], None]


class Plain(nn.Module):
    """Three convolutions and two dense layers."""

    def __init__(self, length: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, left = 4, length
        for kernel in (11, 7, 7):
            layers += [nn.Conv1d(inputs, width, kernel, padding=kernel // 2), nn.BatchNorm1d(width)]
            layers += [nn.ReLU(), nn.MaxPool1d(2), nn.Dropout(0.2)]
            inputs, left = width, left // 2
        layers += [nn.Flatten(), nn.Linear(width * left, 128), nn.ReLU(), nn.Dropout(0.4)]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(self, codes: Tensor) -> Tensor:
        found: Tensor = self.layers(image(codes)[:, :, 0].contiguous())
        return found


def plain(codes: Tensor, label: Tensor, steps: int, seed: int) -> Plain:
    """The plain CNN, trained on sequences (N, L) of classes (N,)."""
    torch.manual_seed(seed)
    network = Plain(codes.shape[1])
    learner = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(learner, steps)
    order = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = torch.from_numpy(order.integers(len(codes), size=BATCH))
        loss = F.cross_entropy(network(codes[chosen]), label[chosen])
        learner.zero_grad()
        loss.backward()
        learner.step()
        slower.step()
    return network.eval()


@torch.inference_mode()
def told(network: Plain, codes: Tensor) -> np.ndarray:
    """(N, 2) the plain CNN's probabilities."""
    parts = [network(part).softmax(1) for part in codes.split(512)]
    return torch.cat(parts).numpy()


def boosted(train_rows: Batch, test: Batch, seed: int) -> float:
    """AUC of gradient boosting over counts of words."""
    features = [_counts(batch.value[SEQUENCE]) for batch in (train_rows, test)]
    trees = HistGradientBoostingClassifier(random_state=seed, max_iter=200)
    trees.fit(features[0], train_rows.value[LABEL].numpy())
    likely = trees.predict_proba(features[1])[:, 1]
    return float(roc_auc_score(test.value[LABEL].numpy(), likely))


def _counts(codes: Tensor) -> np.ndarray:
    """(N, 1364) of words of 1 to 5 letters, of both strands together."""
    found = []
    for order in range(1, 6):
        here = np.zeros((len(codes), 4**order), np.float32)
        for strand in (codes, flipped(codes)):
            letters = strand.numpy() - 1
            width = codes.shape[1] - order + 1
            number = np.zeros((len(codes), width), np.int64)
            for place in range(order):
                number = number * 4 + letters[:, place : place + width]
            rows_of = np.repeat(np.arange(len(codes)), width)
            np.add.at(here, (rows_of, number.ravel()), 1)
        found.append(here)
    return np.concatenate(found, 1)


# --- generated sequences ----------------------------------------------------------------------


def markov(codes: Tensor, label: Tensor) -> Callable[[Tensor, int], Tensor]:
    """One chain of order 5 a class, which knows no position: the opponent that is strong at
    words."""
    network = Chains(codes.shape[1], int(label.max()) + 1)
    network.fit(codes, label)
    whole = network.words.sum(1, keepdim=True)
    network.words.zero_()
    network.words[:, :1] = whole
    network.share.zero_()
    network.share[:, 0] = 1
    network.places.zero_()  # then no position differs from another

    def say(wanted: Tensor, seed: int) -> Tensor:
        keys = noise.keys(seed, torch.arange(len(wanted)))
        return network.say(wanted, noise.uniform(keys, "markov", (codes.shape[1] + 1,)))

    return say


def drawn(model: Model, arm: str) -> Callable[[Tensor, int], Tensor]:
    """What a model's generator, or its chains alone, make; nothing is left out."""
    member = Networks({**model.members[0], "generator": model.members[0][arm]})
    opened = Model(model.task, [member], {})

    def say(wanted: Tensor, seed: int) -> Tensor:
        keys = noise.keys(seed, torch.arange(len(wanted)))
        parts = zip(wanted.split(256), keys.split(256), strict=True)
        return torch.cat([design.drawn(opened, one, row, None) for one, row in parts])

    return say


def likeness(
    say: Callable[[Tensor, int], Tensor], test: Batch, known: Batch, seed: int
) -> dict[str, float]:
    """Divergences from the test sequences, over those of as many training sequences: of words, of
    motifs' places and of the distances between them; and how far off the shares of G and C are."""
    found: dict[str, list[float]] = {}
    random = np.random.default_rng(seed)
    for number in range(int(test.value[LABEL].max()) + 1):
        real = test.value[SEQUENCE][test.value[LABEL] == number].numpy()
        pool = known.value[SEQUENCE][known.value[LABEL] == number].numpy()
        for draw in range(DRAWS):
            made = say(torch.full((len(real),), number), 1000 * seed + draw).numpy()
            like = pool[random.choice(len(pool), len(real), replace=False)]
            ours, usual = (metrics.word_divergences(one, real) for one in (made, like))
            for order in metrics.WORDS:
                found.setdefault(f"words_{order}", []).append(ours[order] / usual[order])
            places, gaps = metrics.motif_divergences(made, real)
            places_real, gaps_real = metrics.motif_divergences(like, real)
            found.setdefault("motif_places", []).append(places / places_real)
            found.setdefault("motif_gaps", []).append(gaps / gaps_real)
            rich, rich_real = metrics.composition(made), metrics.composition(real)
            found.setdefault("gc_mean_gap", []).append(abs(rich.mean() - rich_real.mean()))
            found.setdefault("gc_sd_gap", []).append(abs(rich.std() - rich_real.std()))
    mean = {name: float(np.nanmean(every)) for name, every in found.items()}
    mean["js_ratio"] = float(np.mean([mean[f"words_{order}"] for order in metrics.WORDS]))
    mean["js_ratio_worst"] = max(mean[f"words_{order}"] for order in metrics.WORDS)
    return mean


def told_apart(say: Callable[[Tensor, int], Tensor], known: Batch, test: Batch, seed: int) -> float:
    """How well a network of the recogniser's kind that learned it tells generated sequences from
    test sequences: AUC, .5 where it cannot (Lopez-Paz and Oquab 2017, "Revisiting classifier
    two-sample tests"). It has batch normalisation, which the critic has not, and learns sooner."""
    torch.manual_seed(seed)
    network = Recogniser(known.value[SEQUENCE].shape[1], 2, 64, 0.3)
    learner = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.01)
    paced = torch.optim.lr_scheduler.OneCycleLR(
        learner, 2e-3, total_steps=TOLD_APART, pct_start=0.05
    )
    chance = torch.Generator().manual_seed(seed)
    codes, label = known.value[SEQUENCE], known.value[LABEL]
    flags = torch.arange(2).repeat_interleave(BATCH)
    for step in range(TOLD_APART):
        chosen = torch.randint(len(codes), (BATCH,), generator=chance)
        shown = torch.cat([say(label[chosen], 10_000 + step), codes[chosen]])
        if step % 2:
            shown = flipped(shown)
        logits = network.seen(network.features(image(shown)))
        loss = F.cross_entropy(logits, flags)
        learner.zero_grad()
        loss.backward()
        learner.step()
        paced.step()
    network.eval()
    rows_ = test.take(torch.arange(min(len(test.row), 3000)))
    shown = torch.cat([say(rows_.value[LABEL], seed + 999), rows_.value[SEQUENCE]])
    with torch.inference_mode():
        told = [network.seen(network.both(part))[:, 1] for part in shown.split(256)]
    flags = torch.arange(2).repeat_interleave(len(rows_.row))
    return float(roc_auc_score(flags.numpy(), torch.cat(told).numpy()))


# --- one seed ---------------------------------------------------------------------------------


def one(name: str, where: Path, seed: int, say: Say) -> dict[str, dict[str, float]]:
    """The figures of a seed, by who they are of."""
    steps = SETS[name]
    settings = {"num_workers": 0, "seed": seed, "steps": steps, "batch_size": BATCH}
    settings |= {"transfer_steps": 0, "validate_every": 300}
    began = time.perf_counter()
    summary = train("dna", str(where), settings, register=False, fresh=True)
    minutes = (time.perf_counter() - began) / 60
    model = Model.open(registry.fetch(f"{summary['uri']}/model"))
    job = {"data": str(where), "description": load_manifest(str(where))}
    known, test = (_whole(job, model, part) for part in ("train", "test"))
    every = assess.told(model, job, "test")
    say(f"{name} {seed}: {minutes:.1f} min, {every['metrics']}")
    network = plain(known.value[SEQUENCE], known.value[LABEL], steps, seed)
    label = test.value[LABEL].numpy()
    plain_told = told(network, test.value[SEQUENCE])
    found: dict[str, dict[str, float]] = {"aigc": {}, "plain_cnn": {}, "boosted_kmers": {}}
    found["plain_cnn"]["auc"] = float(roc_auc_score(label, plain_told[:, 1]))
    found["plain_cnn"]["acc"] = float((plain_told.argmax(1) == label).mean())
    found["boosted_kmers"]["auc"] = boosted(known, test, seed)
    ours = {key: every["metrics"][key] for key in ("auc", "acc", "nll", "ece", "ece_floor")}
    ours["train_minutes"] = minutes
    chains: Any = model.members[0]["chains"]
    odds = torch.cat([chains.log_likelihood(part) for part in test.value[SEQUENCE].split(256)])
    found["chains"] = {"auc": float(roc_auc_score(label, (odds[:, 1] - odds[:, 0]).numpy()))}
    ours["auc_without_relatives"] = _apart(model, known, test)
    arms = {"aigc": drawn(model, "generator"), "chains": drawn(model, "chains")}
    arms["markov_5"] = markov(known.value[SEQUENCE], known.value[LABEL])
    for arm, sayer in arms.items():
        here = likeness(sayer, test, known, seed)
        made = sayer(test.value[LABEL], seed + 77)
        here["told_apart_auc"] = told_apart(sayer, known, test, seed)
        here["conditional_acc_raw"] = float((told(network, made).argmax(1) == label).mean())
        far, same = metrics.copies(made.numpy()[:1000], known.value[SEQUENCE].numpy())
        here["copy_rate"], here["nearest_difference"] = float(same.mean()), float(far.mean())
        found.setdefault(arm, {}).update(here)
        say(f"{name} {seed} {arm}: {here}")
    far, same = metrics.copies(test.value[SEQUENCE].numpy()[:1000], known.value[SEQUENCE].numpy())
    found["real"] = {"nearest_difference": float(far.mean())}
    found["real"]["conditional_acc"] = found["plain_cnn"]["acc"]
    ours |= _answered(model, network, test, known, seed)
    taught = {arm: _taught(model, _in_place(known, arms[arm], seed), test) for arm in TAUGHT}
    real = _taught(model, known, test)
    ours |= {"tstr_auc": taught["aigc"], "trtr_auc": real}
    for arm, auc in taught.items():
        found[arm]["tstr_over_trtr"] = auc / real
    found["aigc"] |= ours
    say(f"{name} {seed}: {found['aigc']}")
    return found


def _answered(model: Model, judge: Plain, test: Batch, known: Batch, seed: int) -> dict[str, float]:
    """Of sequences as they are answered, from which the model's own recogniser has turned some
    away: what class another recogniser takes them for, and how like real ones they are."""
    codes, label = [], []
    missing = 0
    for number, name in enumerate(model.task.schema[LABEL].values):
        request = {"n": ANSWERS, "seed": seed, "class": name}
        for item in model.task.generate(model, request):
            if isinstance(item, dict):
                codes.append(data.coded(item["sequence"], test.value[SEQUENCE].shape[1]))
                label.append(number)
            else:
                missing += item.missing
    made, wanted = torch.from_numpy(np.stack(codes)).long(), np.array(label)
    right = float((told(judge, made).argmax(1) == wanted).mean())
    ratios = []
    random = np.random.default_rng(seed)
    for number in range(2):
        real = test.value[SEQUENCE][test.value[LABEL] == number].numpy()
        pool = known.value[SEQUENCE][known.value[LABEL] == number].numpy()
        here = made.numpy()[wanted == number]
        like = pool[random.choice(len(pool), len(here), replace=False)]
        ours, usual = (metrics.word_divergences(one, real) for one in (here, like))
        ratios += [ours[order] / usual[order] for order in metrics.WORDS]
    return {
        "conditional_acc": right,
        "answers_missing": float(missing),
        "answers_js_ratio": float(np.mean(ratios)),
    }


def _in_place(known: Batch, sayer: Callable[[Tensor, int], Tensor], seed: int) -> Batch:
    """Generated sequences of the training sequences' classes."""
    value = known.value | {SEQUENCE: sayer(known.value[LABEL], seed + 555)}
    return known._replace(value=value)


def _taught(model: Model, rows_: Batch, test: Batch) -> float:
    """AUC on the test sequences of a recogniser that learned from these."""
    player = next(p for s in model.task.stages() for p in s.players if p.network == "recogniser")
    stages = (Stage("recogniser", TRANSFERRED, (player,), refresh=0),)
    learner = Adversary(model.task, seed=0, stages=stages)
    learner.prepare(iter([rows_]))
    order = np.random.default_rng(0)
    for step in range(TRANSFERRED):
        chosen = torch.from_numpy(order.integers(len(rows_.row), size=BATCH))
        key = noise.keys(step, torch.arange(BATCH))
        learner.step(rows_.take(chosen)._replace(row=key))
    return fidelity.figures(Model(model.task, [learner.average], {}), [test])["auc"]


def _whole(job: dict[str, Any], model: Model, part: str) -> Batch:
    names = [SEQUENCE, LABEL]
    columns = rows.load(job["data"], job["description"], part, names)
    return model.task.encode(columns, noise.keys(0, torch.arange(len(columns[LABEL]))))


def _apart(model: Model, known: Batch, test: Batch) -> float:
    """AUC of the test sequences that share no stretch of 24 letters with a training sequence."""
    words = np.unique(_stretches(known.value[SEQUENCE]).ravel())
    alone = ~np.isin(_stretches(test.value[SEQUENCE]), words).any(1)
    rows_alone = torch.from_numpy(np.flatnonzero(alone))
    prediction, value, _ = fidelity.collected(model, [test.take(rows_alone)])
    return float(roc_auc_score(value[LABEL], prediction["probability"][:, 1]))


def _stretches(codes: Tensor) -> np.ndarray:
    """(N, L - 23) numbers of all stretches, the lesser of both strands' each."""
    found = []
    for strand in (codes, flipped(codes)):
        letters = (strand.numpy() - 1).clip(0).astype(np.uint64)
        width = codes.shape[1] - SHARED + 1
        number = np.zeros((len(codes), width), np.uint64)
        for place in range(SHARED):
            number = number * np.uint64(4) + letters[:, place : place + width]
        found.append(number)
    lesser: np.ndarray = np.minimum(found[0], found[1][:, ::-1])
    return lesser


# --- speed ------------------------------------------------------------------------------------


def speed(model: Model, test: Batch) -> dict[str, Any]:
    """Sequences a second, as text in and answers out, beside a loop that asks the same networks
    (the critic too, where its opinion is heard) and does nothing else; in turns."""
    items = [{SEQUENCE: data.text_of(codes)} for codes in test.value[SEQUENCE][:2048]]
    texts = [str(item[SEQUENCE]) for item in items]
    member = model.members[0]
    recogniser: Any = member["recogniser"]
    chains: Any = member["chains"]
    critic: Any = member["critic"]
    heard = model.judgement.share if model.judgement is not None else 0.0
    table = {letter: number for number, letter in enumerate("ACGT", 1)}

    @torch.inference_mode()
    def loop() -> None:
        for start in range(0, len(texts), 64):
            part = texts[start : start + 64]
            codes = torch.tensor([[table[letter] for letter in text] for text in part])
            odds = chains.log_likelihood(codes)
            strands = [recogniser.features(image(one)) for one in (codes, flipped(codes))]
            logits = recogniser.logits((strands[0] + strands[1]) / 2, odds)
            told = logits.softmax(1)
            if heard:
                label = torch.zeros(len(part), dtype=torch.int64)
                sides = [critic(image(one), label)[1] for one in (codes, flipped(codes))]
                opinion = ((sides[0] + sides[1]) / 2).softmax(1)
                told = (1 - heard) * told + heard * opinion
            told.tolist()

    @torch.inference_mode()
    def generate_loop() -> None:
        task: Any = model.task
        count = task.candidates
        label = torch.zeros(64 * count, dtype=torch.int64)
        for _ in range(len(texts) // 64):
            codes = chains.say(label, torch.rand(len(label), codes_length + 1))
            strands = [critic(image(one), label)[0] for one in (codes, flipped(codes))]
            odds = ((strands[0] + strands[1]) / 2).view(64, count).softmax(1)
            place = torch.multinomial(odds, 1)[:, 0]
            for one in codes.view(64, count, -1)[torch.arange(64), place]:
                data.text_of(one)

    def ours() -> None:
        model.predict(items)

    def generated() -> None:
        label = torch.zeros(64, dtype=torch.int64)
        for start in range(0, len(texts), 64):
            row = noise.keys(0, torch.arange(start, start + 64))
            for codes in design.drawn(model, label, row, None):
                data.text_of(codes)

    codes_length = test.value[SEQUENCE].shape[1]
    rates: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for name, work in (
            ("recognised", ours),
            ("recognised_loop", loop),
            ("generated", generated),
            ("generated_loop", generate_loop),
        ):
            began = time.perf_counter()
            work()
            rates.setdefault(name, []).append(len(texts) / (time.perf_counter() - began))
    found = {f"{name}_per_second": record.mean(each) for name, each in rates.items()}
    for name in ("recognised", "generated"):
        pairs = zip(rates[name], rates[f"{name}_loop"], strict=True)
        found[f"{name}_ratio"] = record.mean([one / other for one, other in pairs])
    return found


# --- all --------------------------------------------------------------------------------------


def measured(name: str, folder: Path, seeds: int, say: Say) -> dict[str, Any]:
    where = folder / name
    facts = ingest(Dna(), str(catalogue.fetch(name)), str(where), parallel=0)
    every = [
        record.once(folder / f"{name}-{seed}.json", partial(one, name, where, seed, say))
        for seed in range(seeds)
    ]
    found: dict[str, Any] = {
        arm: {key: record.mean([each[arm][key] for each in every]) for key in every[0][arm]}
        for arm in every[0]
    }
    found |= found.pop("aigc")  # the keys stand at the top
    found["rows"] = {part: split["rows"] for part, split in facts["splits"].items()}
    found["duplicates"] = facts["duplicates"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=[*SETS], default=[*SETS])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--speed", help="a model of core_promoters, of which only the speed is told"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("AIGC_HOME", str(options.folder / "home"))
    path = record.RESULTS / "dna.json"
    before = json.loads(path.read_text()) if path.exists() else {"metrics": {}, "seeds": []}
    kept: dict[str, Any] = before["metrics"]
    if options.speed:
        model = Model.open(registry.fetch(options.speed))
        where = options.folder / "core_promoters"
        job = {"data": str(where), "description": load_manifest(str(where))}
        busy = round(record.busy(), 3)
        kept["speed"] = speed(model, _whole(job, model, "test")) | {"busy_before": busy}
        record.save("dna", kept, seeds=before["seeds"], command=COMMAND)
        return
    for name in options.sets:
        kept[name] = measured(name, options.folder, options.seeds, print)
        record.save("dna", kept, seeds=[*range(options.seeds)], command=COMMAND)


if __name__ == "__main__":
    main()
