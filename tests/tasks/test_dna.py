"""DNA is generated as asked for and recognised, by chains that count and networks of seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
import time

import numpy as np
import pytest
import torch

from aigc_ray import config, fidelity, generate, noise, registry, rows, tables
from aigc_ray.adversary import Adversary
from aigc_ray.errors import UserError
from aigc_ray.ingest import ingest
from aigc_ray.model import Model, write
from aigc_ray.schema import Schema
from aigc_ray.task import Batch, Shortfall
from aigc_ray.tasks.dna import data, design, metrics, pictures
from aigc_ray.tasks.dna.chains import Chains, contexts, flipped
from aigc_ray.tasks.dna.networks import Chosen, Critic, Recogniser, image
from aigc_ray.tasks.dna.task import Dna
from tests import sequence_files
from tests.sequence_files import AFTER, MOTIF, PLACE, other_strand

SETTINGS = {
    "steps": 50,
    "width": 16,
    "recogniser_width": 16,
    "recogniser_rate": 1e-2,
    "recogniser_dropout": 0.1,
    "precision": "fp32",
}
LENGTH = 40


def coded(*texts: str) -> torch.Tensor:
    return torch.tensor([["NACGT".index(letter) for letter in text] for text in texts])


def random(count: int, stream: str, shape: int, seed: int = 0) -> torch.Tensor:
    return noise.uniform(noise.keys(seed, torch.arange(count)), stream, (shape,))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of sequences with a motif in promoters, and its validation rows."""
    folder = tmp_path_factory.mktemp("dna")
    sequence_files.write(folder / "some.csv", 600)
    plain = config.override(Dna(), SETTINGS)
    found = ingest(plain, str(folder / "some.csv"), str(folder / "data"), parallel=0)
    task = dataclasses.replace(plain, schema=Schema.from_json(found["schema"]))
    names = [field.name for field in task.schema.fields]
    columns, held_back = (
        rows.load(str(folder / "data"), found, part, names) for part in ("train", "val")
    )
    adversary = Adversary(task, seed=0)
    feed = rows.Memory(columns, batch_size=32, seed=0).batches(0, rows.Share())
    every = task.encode(columns, noise.keys(0, torch.arange(len(columns["label"]))))
    adversary.prepare(iter([every]))
    while not adversary.finished:
        number, taken = next(feed)
        adversary.step(task.encode(taken, noise.keys(0, torch.from_numpy(number))))
    validation = task.encode(held_back, noise.keys(1, torch.arange(len(held_back["label"]))))
    return Model(task, [adversary.average], {}), validation


def asked(trained, **request):
    return [*trained[0].task.generate(trained[0], {"n": 4, "sure": 0} | request)]


def holds(text: str, letters: str) -> bool:
    """Whether IUPAC's letters stand somewhere in a text."""
    meant = {"W": "AT", "S": "CG", "R": "AG", "Y": "CT", "N": "ACGT"}
    return bool(re.search("".join(f"[{meant.get(letter, letter)}]" for letter in letters), text))


# --- chains -----------------------------------------------------------------------------------


def test_contexts_of_a_case_by_hand():
    at = contexts(coded("ACGTNACG"))
    assert at.letter.tolist() == [[0, 1, 2, 3, 0, 0, 1, 2]]
    assert at.known.tolist() == [[True] * 4 + [False] + [True] * 3]
    assert at.depth.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert at.words.tolist() == [[0, 0, 1, 4 + 2, 16 + 8 + 3, 0, 0, 1]]
    assert at.before.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]


def test_counts_of_a_case_by_hand():
    chains = Chains(8, 2)
    chains.fit(coded("ACGTACGT", "TTTTTTTT"), torch.tensor([0, 1]))
    # Whole contexts of the first: ACGTA before C, CGTAC before G, GTACG before T.
    wanted = {(0b0001101100, 1): 1, (0b0110110001, 2): 1, (0b1011000110, 3): 1}
    words = chains.words[0, 0]
    assert {tuple(at): int(words[tuple(at)]) for at in words.nonzero().tolist()} == wanted
    assert float(chains.words[1, 0, 4**5 - 1, 3]) == float(chains.words[1].sum()) == 3
    places = chains.places[0].nonzero().tolist()
    before, letters = [0, 1, 2, 3, 4, 1, 2, 3], [0, 1, 2, 3, 0, 1, 2, 3]
    assert places == [[n, b, a] for n, (b, a) in enumerate(zip(before, letters, strict=True))]
    assert chains.share[:, 0].tolist() == [1, 1] and not chains.share[:, 1:].any()

    table, odds = chains.tables()
    alone = [12.5 / 53, 13.5 / 53, 13.5 / 53, 13.5 / 53]  # 50 letters of a quarter each, and three
    assert table[0, 0, 0].exp().tolist() == pytest.approx(alone)
    after_a = [(50 * share + (letter == 1)) / 51 for letter, share in enumerate(alone)]
    assert table[0, 0, 1].exp().tolist() == pytest.approx(after_a)
    first = (1 + 20 * 6 / 21) / 21  # A at the beginning: once, of 20 more like all letters there
    anywhere = (1 + 20 * 0.25) / 21
    assert float(odds[0, 0, 0, 0]) == pytest.approx(math.log(first / anywhere), abs=1e-5)


def test_chains_of_a_known_source_give_back_its_probabilities():
    chance = torch.Generator().manual_seed(0)
    share = torch.tensor([AFTER[letter] for letter in "ACGT"]) / 100
    codes = torch.zeros(240, 300, dtype=torch.int64)
    for place in range(300):
        here = share[codes[:, place - 1] - 1] if place else torch.full((240, 4), 0.25)
        codes[:, place] = torch.multinomial(here, 1, generator=chance)[:, 0] + 1
    chains = Chains(300, 2)
    chains.fit(codes, torch.ones(240, dtype=torch.int64))
    table, _ = chains.tables()
    torch.testing.assert_close(table[1, 0, 1:5].exp(), share, atol=0.015, rtol=0)
    deeper = table[1, 0, 5:21].exp().view(4, 4, 4)  # whatever stands before the last letter
    torch.testing.assert_close(deeper, share.expand(4, 4, 4), atol=0.04, rtol=0)


def test_parts_of_a_class_that_are_unlike_have_chains_of_their_own():
    chance = torch.Generator().manual_seed(0)
    rich, poor = torch.tensor([0.1, 0.4, 0.4, 0.1]), torch.tensor([0.4, 0.1, 0.1, 0.4])
    codes = torch.cat(
        [
            torch.multinomial(share, count * 30, True, generator=chance).view(count, 30) + 1
            for share, count in ((rich, 200), (poor, 400))
        ]
    )
    chains = Chains(30, 1)
    chains.fit(codes, torch.zeros(600, dtype=torch.int64))
    assert sorted(chains.share[0].tolist())[-2:] == pytest.approx([1 / 3, 2 / 3], abs=0.03)
    table, _ = chains.tables()
    found = sorted(table[0, :2, 0].exp().tolist())
    torch.testing.assert_close(torch.tensor(found), torch.stack([rich, poor]), atol=0.03, rtol=0)


@pytest.fixture
def small():
    """Chains of four letters that know something of every context."""
    torch.manual_seed(0)
    chains = Chains(4, 2)
    chains.words.copy_(torch.rand(chains.words.shape) * 3)
    chains.places.copy_(torch.rand(chains.places.shape) * 30)
    chains.share.copy_(torch.rand(chains.share.shape).softmax(1))
    every = torch.tensor(list(itertools.product(range(1, 5), repeat=4)))
    return chains, every


def test_the_likelihoods_of_all_sequences_add_up_to_one_and_strands_are_alike(small):
    chains, every = small
    found = chains.log_likelihood(every)
    assert found.shape == (256, 2) and found.std(0).min() > 0.05
    torch.testing.assert_close(found.exp().sum(0), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, chains.log_likelihood(flipped(every)))
    assert flipped(coded("AACGN")).tolist() == coded("NCGTT").tolist()


def test_chains_say_sequences_as_often_as_they_hold_them_likely(small):
    chains, every = small
    count = 20_000
    for label in range(2):
        said = chains.say(torch.full((count,), label), random(count, "x", 5, seed=label))
        number = ((said - 1) * torch.tensor([64, 16, 4, 1])).sum(1)
        share = torch.bincount(number, minlength=256) / count
        other = ((flipped(every) - 1) * torch.tensor([64, 16, 4, 1])).sum(1)
        both = (share + share[other]) / 2  # the likelihood is of a strand that is not known
        wanted = chains.log_likelihood(every)[:, label].exp()
        assert ((both - wanted).abs() < 5 * (wanted / count).sqrt()).all()
        assert (both - wanted).abs().sum() < 0.15


def test_letters_that_are_fixed_stand_and_the_others_follow_them(small):
    chains, _ = small
    fixed = coded("NGNN").expand(5000, 4)
    said = chains.say(torch.ones(5000, dtype=torch.int64), random(5000, "x", 5), fixed)
    assert (said[:, 1] == 3).all()
    free = chains.say(torch.ones(5000, dtype=torch.int64), random(5000, "x", 5))
    assert torch.equal(free[:, 0], said[:, 0])
    same = free[:, 1] == 3
    assert same.any() and torch.equal(free[same], said[same])


def test_the_same_numbers_say_the_same_whatever_else_is_in_the_batch(small):
    chains, _ = small
    label, numbers = torch.arange(30) % 2, random(30, "x", 5)
    together = chains.say(label, numbers)
    for row in (0, 7, 29):
        assert torch.equal(
            chains.say(label[row : row + 1], numbers[row : row + 1])[0], together[row]
        )


def test_letters_that_are_not_known_count_for_nothing(small):
    chains, _ = small
    found = chains.log_likelihood(coded("NNNN", "NNNN"))
    torch.testing.assert_close(found, torch.zeros(2, 2), atol=1e-5, rtol=0)
    counted = Chains(8, 1)
    counted.fit(coded("ACGNACGT", "NNNNNNNN"), torch.tensor([0, 0]))
    assert counted.places.sum() == 7 and not counted.words.any()
    with_it, without = Chains(16, 1), Chains(16, 1)
    text = "ACGTTGCAACGGTTAC"
    with_it.fit(coded(text, "N" * 16), torch.tensor([0, 0]))
    without.fit(coded(text), torch.tensor([0]))
    assert torch.equal(with_it.words, without.words)
    assert torch.equal(with_it.places, without.places)


def left_out(count: int, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Log-likelihoods (K,) of a row: left out of the counts, by counts without it, by all counts;
    and its class."""
    pairs = sequence_files.sequences(count)
    codes = coded(*(text for text, _ in pairs))
    label = torch.tensor([int(name == "promoter") for _, name in pairs])
    whole, rest, others = Chains(LENGTH, 2), Chains(LENGTH, 2), torch.arange(count) != row
    whole.fit(codes, label)
    rest.fit(codes[others], label[others])
    one = slice(row, row + 1)
    found, exact = whole.log_likelihood(codes[one], label[one]), rest.log_likelihood(codes[one])
    return found[0], exact[0], whole.log_likelihood(codes[one])[0], int(label[row])


@pytest.mark.parametrize("row", [0, 1, 200, 331])
def test_a_row_that_is_left_out_is_no_likelier_for_having_been_counted(row):
    found, exact, naive, own = left_out(480, row)
    assert naive[own] - exact[own] > 0.5
    assert abs(found[own] - exact[own]) < 0.15 * (naive[own] - exact[own])
    assert found[1 - own] == naive[1 - own] == exact[1 - own]


def test_chains_that_are_loaded_say_what_those_that_were_kept_said(trained):
    model, validation = trained
    kept, fresh = model.members[0]["chains"], model.task.networks()["chains"]
    codes = validation.value["sequence"]
    before = fresh.log_likelihood(codes)  # of tables without a count
    fresh.load_state_dict(kept.state_dict())
    assert not torch.equal(fresh.log_likelihood(codes), before)
    assert torch.equal(fresh.log_likelihood(codes), kept.log_likelihood(codes))


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16, 41, 128, 130, 257])
def test_networks_read_any_length_and_both_strands_alike(length):
    torch.manual_seed(0)
    codes, label = torch.randint(1, 5, (3, length)), torch.tensor([0, 1, 0])
    critic = Critic(length, 2, 16)
    logits, classes = critic.both(codes, label)
    assert logits.shape == (3,) and classes.shape == (3, 2)
    torch.testing.assert_close(critic.both(flipped(codes), label), (logits, classes))
    assert not torch.allclose(critic(image(codes), label)[0], logits)
    features = Recogniser(length, 2, 16, 0.0).both(codes)
    assert features.shape == (3, 16)
    both = Recogniser(length, 2, 16, 0.0).eval()
    torch.testing.assert_close(both.both(codes), both.both(flipped(codes)))


def test_an_image_has_one_letter_a_place_and_a_quarter_of_each_where_none_is_known():
    made = image(coded("ACGTN"))
    assert made.shape == (1, 4, 1, 5)
    assert torch.equal(made[0, :, 0, :4], torch.eye(4))
    assert (made[0, :, 0, 4] == 0.25).all()
    # The other strand's image is this one's from its other end, with complements.
    codes = torch.randint(0, 5, (2, 9))
    assert torch.equal(image(flipped(codes)), image(codes).flip(1, 3))


def test_a_candidate_passes_as_often_as_the_critic_holds_it_real():
    odds = torch.tensor([0.5, 0.3, 0.2])
    count = 20_000
    chosen = Chosen()(odds.log().expand(count, 3), random(count, "choice", 3))
    share = torch.bincount(chosen, minlength=3) / count
    torch.testing.assert_close(share, odds, atol=0.015, rtol=0)
    edge = torch.tensor([[0.0, 0.0], [0.0, 1 - 2**-24]])  # the ends of what random numbers are
    assert Chosen()(torch.zeros(2, 2), edge).tolist()[1] == 1


def test_the_critic_learns_to_tell_what_is_said_from_what_is_real(monkeypatch):
    task = config.override(Dna(), SETTINGS | {"critic_rate": 1e-2})
    task = dataclasses.replace(task, schema=data.schema(LENGTH, ("one", "other")))
    (stage,) = task.stages()
    critic = tuple(player for player in stage.players if player.network == "critic")
    adversary = Adversary(task, seed=0, stages=(stage._replace(steps=60, players=critic),))
    label = torch.arange(64) % 2
    known = torch.ones(64, dtype=torch.bool)

    def real(seed: int) -> Batch:  # rich in G and C, which what is said is not
        codes = 1 + (random(64, "real", LENGTH, seed) * 4.0).sub(0.5).round().clamp(0, 3).long()
        codes = torch.where(random(64, "rich", LENGTH, seed) < 0.4, 2 + codes % 2, codes)
        value = {"sequence": codes, "label": label}
        row = noise.keys(seed, torch.arange(64))
        return Batch(value, dict.fromkeys(value, known), torch.ones(64), row)

    def said(self, label, numbers, fixed=None):
        return (1 + numbers[:, 1:] * 4).long()

    adversary.prepare(iter([real(0)]))
    monkeypatch.setattr(Chains, "say", said)
    for step in range(60):
        adversary.step(real(step))
    judge = adversary.average["critic"]
    fake = said(None, label, random(64, "said", LENGTH + 1, seed=999))
    one, other = (judge.both(codes, label)[0] for codes in (real(999).value["sequence"], fake))
    assert (one[:, None] > other).float().mean() > 0.8  # the area under the curve


def test_what_the_critic_holds_real_is_generated_more_often(trained, monkeypatch):
    model, _ = trained
    label = torch.arange(400) % 2
    row = noise.keys(6, torch.arange(400))
    batch = Batch({"label": label}, {"label": label >= 0}, torch.ones(400), row)

    def paired(codes: torch.Tensor) -> torch.Tensor:
        return (codes[:, 1:] == codes[:, :-1]).float().mean(1)

    first = {**model.members[0], "generator": model.members[0]["chains"]}
    alone = Model(model.task, [torch.nn.ModuleDict(first)], {}).draw(batch).value["sequence"]
    monkeypatch.setattr(Critic, "both", lambda self, codes, _: (40 * paired(codes), None))
    chosen = model.draw(batch).value["sequence"]
    assert paired(chosen).mean() > paired(alone).mean() + 0.05


def test_candidates_are_of_one_part_and_the_first_passes_without_a_critic(trained):
    model, _ = trained
    networks, label = model.members[0], torch.arange(200) % 2
    row = noise.keys(5, torch.arange(200))
    batch = Batch({"label": label}, {"label": label >= 0}, torch.ones(200), row)
    seen: list[torch.Tensor] = []
    chains = networks["chains"]

    def said(every, numbers, fixed=None):
        seen.append(numbers.view(200, -1, numbers.shape[1]))
        return Chains.say(chains, every, numbers, fixed)

    first = torch.nn.ModuleDict({**networks, "generator": chains}).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "say", said)
        drawn = model.task.draw(first, batch).value["sequence"]
    (numbers,) = seen
    assert numbers.shape[1] == model.task.candidates == 8
    assert (numbers[:, :, 0] == numbers[:, :1, 0]).all()
    assert len(numbers[0, :, 1].unique()) == 8
    assert torch.equal(drawn, chains.say(label, numbers[:, 0]))
    chosen = model.task.draw(networks, batch).value["sequence"]
    assert 0.5 < (chosen != drawn).any(1).float().mean() < 1


@pytest.mark.parametrize("length", [41, 130])
def test_rows_do_not_touch_each_other(length):
    torch.manual_seed(1)
    codes, label = torch.randint(1, 5, (5, length)), torch.tensor([0, 1, 0, 1, 1])
    critic, recogniser = Critic(length, 2, 16), Recogniser(length, 2, 16, 0.2)
    for network in (critic, recogniser):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        network.eval()
    logits, classes = critic(image(codes), label)
    features = recogniser.both(codes)
    assert logits.std() > 0 and features.std(0).max() > 0
    for row in range(len(codes)):
        one = slice(row, row + 1)
        alone = critic(image(codes[one]), label[one])
        torch.testing.assert_close(alone[0], logits[one], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone[1], classes[one], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(recogniser.both(codes[one]), features[one], atol=1e-4, rtol=1e-4)


# --- what was learned -------------------------------------------------------------------------


def test_promoters_are_told_from_others(trained):
    model, validation = trained
    figures = fidelity.figures(model, [validation])
    assert figures["auc"] > 0.9
    assert figures["acc"] > 0.8


def test_the_motif_stands_in_its_place_in_generated_promoters_only(trained):
    model, _ = trained
    label = torch.arange(400) % 2
    codes = design.drawn(model, label, noise.keys(3, torch.arange(400)), None)
    near = range(PLACE - 1, PLACE + 2)
    share = [0.0, 0.0]
    for text, name in zip(map(data.text_of, codes), label.tolist(), strict=True):
        share[name] += any(text.startswith(MOTIF, place) for place in near) / 200
    assert share[1] > 0.1
    assert share[1] > 5 * share[0]


def test_both_strands_get_the_same_answer_and_unknown_letters_are_warned_of(trained):
    model, _ = trained
    texts = [text for text, _ in sequence_files.sequences(8, seed=77)]
    found = model.predict([{"sequence": text} for text in texts])
    other = model.predict([{"sequence": other_strand(text)} for text in texts])
    for one, two in zip(found, other, strict=True):
        assert one["label"] == two["label"]
        assert one["probabilities"] == pytest.approx(two["probabilities"], abs=1e-5)
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    (unsure,) = model.predict([{"sequence": "NN" + texts[0][2:].lower(), "name": "mine"}])
    assert unsure["name"] == "mine" and unsure["warnings"] == ["2 letters are not known"]


def test_many_are_answered_side_by_side_and_in_order(trained):
    model, validation = trained
    texts = [data.text_of(codes) for codes in validation.value["sequence"][:50]] * 3
    items = [{"sequence": text, "name": str(number)} for number, text in enumerate(texts)]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = model.predict(items)
        assert torch.get_num_threads() == 3
        with pytest.raises(UserError, match="item 140: "):
            model.predict([*items[:140], {"sequence": "?"}])
    finally:
        torch.set_num_threads(before)
    assert [one["name"] for one in found] == [str(number) for number in range(150)]
    for one, item in zip(found[:50], items[:50], strict=True):
        (alone,) = model.predict([item])
        assert one["label"] == alone["label"]
        for name, share in alone["probabilities"].items():
            assert one["probabilities"][name] == pytest.approx(share, abs=1e-5)


def test_letters_of_the_motif_speak_most_for_a_promoter(trained):
    model, _ = trained
    hits, inside, outside = 0, [], []
    for text, _ in sequence_files.sequences(12, seed=78)[1::2]:
        place = text.index(MOTIF, PLACE - 1)
        codes = coded(text)[0]
        effect = model.task._effects(model.members[0], codes, 1).numpy()
        within = slice(place, place + len(MOTIF))
        hits += place <= int(effect.argmax()) < place + len(MOTIF)
        inside.append(effect[within].mean())
        outside.append(np.abs(np.delete(effect, within)).mean())
    assert hits >= 5
    assert np.mean(inside) > 3 * np.mean(outside)


def test_an_effect_is_the_score_less_its_mean_with_another_letter_there(trained):
    model, _ = trained
    task, networks = model.task, model.members[0]
    (text, _), _ = sequence_files.sequences(2, seed=79)
    text = "N" + text[1:]
    effect = task._effects(networks, coded(text)[0], 1)
    assert float(effect[0]) == 0

    def score(*texts):
        one = torch.ones(len(texts), dtype=torch.int64)
        batch = Batch({"sequence": coded(*texts), "label": one}, {}, torch.ones(len(texts)), one)
        return task.score(networks, batch, one)

    for place in (1, 17, 39):
        others = [text[:place] + a + text[place + 1 :] for a in "ACGT" if a != text[place]]
        wanted = float(score(text)) - float(score(*others).mean())
        assert float(effect[place]) == pytest.approx(wanted, abs=1e-4)


def test_an_explanation_is_letters_and_a_logo_or_withheld(trained):
    model, validation = trained
    text = sequence_files.sequences(2, seed=78)[1][0]
    found = model.explain(model.parse({"sequence": text}))
    assert found["of"] == "promoter" and found["method"] == "in-silico mutagenesis"
    assert len(found["bases"]) == LENGTH and found["image"][:4] == b"\x89PNG"
    gate = model.task.accounted(model, validation)
    assert gate["passes"] is True and 0 <= gate["correlation"][0] <= gate["limit"]
    failed = Model(model.task, model.members, {"explanation": gate | {"passes": False}})
    assert "do not hang on what it learned" in failed.explain(
        model.parse({"sequence": text})
    )["withheld"]  # fmt: skip


# --- what is generated ------------------------------------------------------------------------


def test_as_many_as_asked_for_of_the_class_each_once(trained):
    items = asked(trained, n=70, **{"class": "promoter"})
    assert len({item["sequence"] for item in items}) == len(items) == 70
    for item in items:
        text = item["sequence"]
        assert len(text) == LENGTH and set(text) <= set("ACGT")
        assert item["class"] == "promoter"
        assert item["gc"] == pytest.approx(sum(a in "GC" for a in text) / LENGTH, abs=1e-4)
    answers = trained[0].predict([{"sequence": item["sequence"]} for item in items[:5]])
    for item, answer in zip(items, answers, strict=False):
        assert item["probability"] == pytest.approx(answer["probabilities"]["promoter"], abs=1e-3)
    assert {item["class"] for item in asked(trained, n=4)} == {"other", "promoter"}


def test_the_same_seed_gives_the_same_and_fewer_are_the_first_of_more(trained):
    wish = {"seed": 3, "motifs": ["GGWCC"], "class": "promoter"}
    first = asked(trained, n=9, **wish)
    assert asked(trained, n=9, **wish) == first
    assert asked(trained, n=3, **wish) == first[:3]
    other = asked(trained, n=9, **wish | {"seed": 4})
    assert not {item["sequence"] for item in other} & {item["sequence"] for item in first}


@pytest.mark.parametrize(
    "motifs",
    [["GGATCC"], "ggatcc", ["TATAWAWR", "SSCGNNCG"], [{"motif": "WWSCY", "position": 35}],
     [{"motif": "CCGG", "position": 0}, "GATTACA", {"motif": "NNN", "position": 4}]],
)  # fmt: skip
def test_motifs_stand_somewhere_or_where_they_were_put(trained, motifs):
    items = asked(trained, n=6, motifs=motifs)
    assert len(items) == 6
    wanted = [motifs] if isinstance(motifs, str) else motifs
    for item in items:
        text = item["sequence"]
        for motif, told in zip(wanted, item["motifs"], strict=True):
            place = motif["position"] if isinstance(motif, dict) else None
            letters = (motif["motif"] if isinstance(motif, dict) else motif).upper()
            if place is not None:
                assert told["position"] == place
            assert told["motif"] == letters
            assert holds(text[told["position"] :][: len(letters)], letters)
    if wanted[0] in ("GGATCC", "ggatcc"):
        assert len({item["motifs"][0]["position"] for item in items}) > 1


@pytest.mark.parametrize(
    "fixed", ["N" * 10 + "ACGTRY" + "N" * 24, "." * 30 + "ttttyyyyww", "AC" * 19 + "NN"]
)
def test_fixed_letters_stand(trained, fixed):
    for item in asked(trained, n=3, fixed=fixed):
        meant = fixed.upper().replace(".", "N")
        for letter, wish in zip(item["sequence"], meant, strict=True):
            assert holds(letter, wish)


def test_the_share_of_g_and_c_is_in_its_range(trained):
    items = asked(trained, n=8, gc=[0.5, 0.6])
    assert len(items) == 8
    for item in items:
        assert 20 <= sum(letter in "GC" for letter in item["sequence"]) <= 24


def test_forbidden_sites_stand_on_neither_strand(trained):
    sites = {"AAAT": "AAAT", "KpnI": "GGTACC", "bsai": "GGTCTC", "CCWGG": "CCWGG", "GAC": "GAC"}
    items = asked(trained, n=6, forbidden=[*sites])
    assert len(items) == 6
    for item in items:
        for strand in (item["sequence"], other_strand(item["sequence"])):
            assert not any(holds(strand, letters) for letters in sites.values())


def test_the_recogniser_is_as_sure_as_asked(trained):
    items = asked(trained, n=5, sure=0.9, **{"class": "promoter"})
    assert len(items) == 5
    answers = trained[0].predict([{"sequence": item["sequence"]} for item in items])
    assert all(answer["probabilities"]["promoter"] >= 0.9 for answer in answers)


def test_wishes_hold_together(trained):
    items = asked(
        trained, n=3, fixed="GG" + "N" * 38, motifs=["CACGTG"], gc=[0.3, 0.55],
        forbidden=["EcoRI", "AAAAA"], sure=0.6, **{"class": "other"},
    )  # fmt: skip
    assert len(items) == 3
    for item in items:
        text = item["sequence"]
        assert text.startswith("GG") and "CACGTG" in text and 0.3 <= item["gc"] <= 0.55
        assert not re.search("GAATTC|AAAAA|TTTTT", text)
        assert item["probability"] >= 0.6 and item["class"] == "other"


def counts(reason: str) -> tuple[int, dict[str, int]]:
    """How many were tried, and how many fell for each reason."""
    tried, _, rest = reason.removeprefix("of ").partition(" sequences that were made ")
    parts = (part.partition(" ") for part in rest.split(", "))
    return int(tried), {why: int(count) for count, _, why in parts}


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"gc": [0.99, 1.0], "fixed": "A" * 20 + "N" * 20}, {"missed the range of gc"}),
        ({"motifs": ["GAATTC"], "forbidden": ["EcoRI"]}, {"held EcoRI"}),
        (
            {"motifs": [{"motif": "AAAA", "position": 3}, {"motif": "CC", "position": 4}]},
            {"lacked AAAA"},
        ),
    ],
)
def test_what_contradicts_itself_ends_with_its_reasons_counted(trained, request_, why, monkeypatch):
    monkeypatch.setattr(design, "FRUITLESS", 200)
    start = time.monotonic()
    *items, short = asked(trained, n=2, **request_)
    assert items == [] and isinstance(short, Shortfall) and short.missing == 2
    tried, found = counts(short.reason)
    assert 200 <= tried < 200 + design.ROUND
    assert set(found) == why and sum(found.values()) == tried
    assert time.monotonic() - start < 20


def test_what_can_be_made_a_few_times_only_is_given_with_a_shortfall(trained, monkeypatch):
    monkeypatch.setattr(design, "TRIES", 10)
    fixed = sequence_files.sequences(1, seed=80)[0][0][:-1] + "N"
    *items, short = asked(trained, n=20, fixed=fixed, gc=[0, 1], forbidden=[])
    assert 1 <= len(items) == len({item["sequence"] for item in items}) <= 4
    assert short.missing == 20 - len(items)
    tried, found = counts(short.reason)
    assert 200 <= tried < 200 + design.ROUND
    assert found == {"had been made before": tried - len(items)}


def test_the_bound_on_fruitless_tries_is_small():
    assert design.FRUITLESS <= 5_000 and design.TRIES <= 100


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"colour": 1}, "generate takes n, seed, class, .*; got colour"),
        ({"class": "enhancer"}, "class is one of other, promoter; got 'enhancer'"),
        ({"class": 1}, "class is one of other, promoter; got 1"),
        ({"n": 0}, "n is a whole number from 1 to 10000; got 0"),
        ({"n": 10**7}, "n is a whole number from 1 to 10000; got 10000000"),
        ({"n": True}, "n is a whole number"),
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"motifs": ["A" * 41]}, "motifs: A+ is longer than the 40 letters of a sequence"),
        ({"motifs": ["TAQ"]}, "motifs holds letters of DNA.*; got the letter 'Q'"),
        ({"motifs": [""]}, "motifs holds letters of DNA"),
        ({"motifs": [3]}, "motifs holds letters of DNA.*; got 3"),
        ({"motifs": 3}, "motifs is a list of at most 20 patterns; got 3"),
        ({"motifs": ["A"] * 21}, "motifs is a list of at most 20 patterns"),
        ({"motifs": [{"letters": "A"}]}, 'objects with "motif" and "position"'),
        ({"motifs": [{"position": 3}]}, "motifs holds letters of DNA"),
        ({"motifs": [{"motif": "TATA", "position": 37}]}, "motifs: TATA stands at a position from"),
        ({"motifs": [{"motif": "TATA", "position": -1}]}, "from 0 to 36; got -1"),
        ({"motifs": [{"motif": "TATA", "position": 1.5}]}, "from 0 to 36; got 1.5"),
        (
            {"fixed": "A" * 40, "motifs": [{"motif": "TATA", "position": 3}]},
            "motifs: TATA at 3 contradicts what is fixed there",
        ),
        ({"fixed": "ACGT"}, "fixed has 40 letters, N where any may stand; got 4"),
        ({"fixed": "U" * 40}, "fixed holds letters of DNA.*; got the letter 'U'"),
        ({"fixed": None}, "fixed holds letters of DNA.*; got None"),
        ({"gc": 0.5}, r"gc is a range of shares \[low, high\] from 0 to 1; got 0.5"),
        ({"gc": [0.6, 0.5]}, "gc is a range"),
        ({"gc": [40, 60]}, "gc is a range"),
        ({"gc": [0.1, "x"]}, "gc is a range"),
        ({"gc": [float("nan"), 1]}, "gc is a range"),
        ({"forbidden": ["GAATTX"]}, "forbidden holds letters of DNA.*; got the letter 'X'"),
        ({"forbidden": [None]}, "forbidden holds letters of DNA"),
        ({"sure": 1}, "sure is at least 0 and below 1; got 1"),
        ({"sure": float("nan")}, "sure is at least 0"),
        ({"sure": "very"}, "sure is at least 0"),
    ],
)
def test_a_request_that_cannot_be_is_refused_in_words(trained, request_, words):
    with pytest.raises(UserError, match=words):
        asked(trained, **request_)


@pytest.mark.parametrize(
    "request_",
    [{"motifs": ["TA.A"]}, {"motifs": [{"motif": "TA.A", "position": 3}]},
     {"forbidden": ["GA.CTC"]}, {"seed": 2**63}],
)  # fmt: skip
def test_what_is_not_refused_is_made(trained, request_):
    """A dot means any letter in what is fixed; elsewhere it may mean so, or be refused."""
    with contextlib.suppress(UserError):
        assert len(asked(trained, n=1, **request_)) == 1


# --- measures ---------------------------------------------------------------------------------


def test_divergences_of_cases_by_hand():
    one, other = np.array([1.0, 0.0, 0.0]), np.array([0.0, 2.0, 2.0])
    assert metrics.divergence(one, one) == 0
    assert metrics.divergence(other, other / 4) == pytest.approx(0)
    assert metrics.divergence(one, other) == pytest.approx(1)
    assert metrics.divergence(one, np.zeros(3)) == 1
    assert metrics.divergence(np.zeros(3), np.zeros(3)) == 0
    # Against (1/2, 1/2) from (1, 0): the middle is (3/4, 1/4).
    half = np.array([0.5, 0.5])
    wanted = (math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5 * math.log2(2)) / 2
    assert metrics.divergence(np.array([1.0, 0.0]), half) == pytest.approx(wanted)


def test_words_and_composition_of_a_known_sequence():
    codes = coded("ACGACGN", "NNNNNNN").numpy()
    found = metrics.spectrum(codes, 3)
    number = {"ACG": 0b000110, "CGA": 0b011000, "GAC": 0b100001}
    assert found[number["ACG"]] == 0.5
    assert found[number["CGA"]] == found[number["GAC"]] == 0.25
    assert found.sum() == 1
    assert metrics.composition(coded("ACGT", "GGCA").numpy()).tolist() == [0.5, 0.75]
    assert metrics.letters_by_place(coded("AC", "AG", "NT").numpy())[0].tolist() == [1, 0, 0, 0]
    assert metrics.word_divergences(codes[:1], codes[:1]) == {3: 0, 4: 0, 5: 0, 6: 0}


def test_motifs_are_found_where_they_stand():
    texts = ["GGTATATATAAGGGCGGCCAATGG", "CCAATCCAATACCATGGTTTTTTT"]
    found = metrics.places(coded(*texts).numpy())
    assert found["tata_box"] == [[2, 4], []]  # they may overlap
    assert found["gc_box"] == [[11], []]
    assert found["caat_box"] == [[17], [0, 5]]
    assert found["kozak"] == [[], [10]]
    counts = metrics.motif_statistics(coded(*texts).numpy())
    assert counts["caat_box by position"].tolist() == [1, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    gaps = counts["caat_box to gc_box"]  # 6 letters before, of 24 either way
    assert gaps.sum() == 1 and gaps[int((-6 + 24) / 4.8)] == 1
    assert counts["caat_box to caat_box"].sum() == 1


def test_rare_motifs_are_left_out_of_the_mean():
    bare = coded("A" * 40).numpy()
    assert all(math.isnan(value) for value in metrics.motif_divergences(bare, bare))
    boxes = coded(*["GGGCGG" + "A" * 34] * 60).numpy()
    place, gap = metrics.motif_divergences(boxes, boxes)
    assert place == 0 and math.isnan(gap)
    assert metrics.motif_divergences(boxes[:, ::-1].copy(), boxes)[0] == 1


def test_copies_are_found_on_either_strand():
    known = [text for text, _ in sequence_files.sequences(300)]
    one, two, other = known[5], other_strand(known[7]), known[9]
    off = ("C" if other[0] == "A" else "A") + other[1:]
    far, same = metrics.copies(coded(one, two, off).numpy(), coded(*known).numpy())
    assert far.tolist() == pytest.approx([0, 0, 1 / LENGTH], abs=1e-6)
    assert same.tolist() == [True, True, False]


def test_sets_that_are_alike_have_no_distance_and_others_have(trained):
    model, validation = trained
    found = model.task.compared(validation, validation)
    assert set(found) == {
        "words_3_js", "words_4_js", "words_5_js", "words_6_js", "gc_mean_gap", "gc_sd_gap",
        "motif_places_js", "motif_gaps_js",
    }  # fmt: skip
    assert all(value == 0 for value in found.values())
    value = validation.value | {"sequence": torch.full_like(validation.value["sequence"], 2)}
    far = model.task.compared(validation, validation._replace(value=value))
    assert far["words_3_js"] > 0.8 and far["gc_mean_gap"] > 0.3


def test_rows_without_a_class_are_not_measured(trained):
    task = trained[0].task
    probability = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.0, 1.0]])
    label, known = np.array([0, 1, 0, 0]), np.array([True, True, True, False])
    found = task.measure({"probability": probability}, {"label": label}, {"label": known})
    assert found["auc"] == 1 and found["acc"] == pytest.approx(2 / 3)


def test_pictures_are_png():
    codes = coded(*(text for text, _ in sequence_files.sequences(40, 101))).numpy()
    bits = pictures.information(codes)
    assert bits.shape == (101, 4)
    assert pictures.information(coded("A", "A").numpy()).tolist() == [[2, 0, 0, 0]]
    assert pictures.information(coded("A", "C", "G", "T").numpy()) == pytest.approx(0)
    heights = np.zeros((101, 4))
    heights[::25] = [1, -2, 0, 0.5]
    for drawn in (
        pictures.logo(heights, "score"),
        pictures.logo(np.zeros((3, 4)), "nothing"),
        pictures.words(codes, codes[:9]),
    ):
        assert drawn[:4] == b"\x89PNG"


# --- jobs ---------------------------------------------------------------------------------------


def test_a_job_writes_fasta_that_is_read_again(trained, tmp_path, monkeypatch):
    model, _ = trained
    monkeypatch.setenv("AIGC_HOME", str(tmp_path / "home"))
    info = {
        "task": "dna",
        "configuration": config.to_json(model.task),
        "schema": model.task.schema.to_json(),
    }
    write(tmp_path / "model", [model.members[0].state_dict()], info)
    version = registry.register("dna", tmp_path / "model")
    out = str(tmp_path / "made.fa")
    request = {"class": "promoter", "gc": "0.3:0.7", "motifs": "CAAT"}
    told = generate.generate(f"dna:{version}", 6, out, 1, request)
    assert told["n"] == 6 and told["shortfall"] == []
    written = list(tables.read(out))
    assert len(written) == 6
    for row in written:
        assert row is not None and "CAAT" in row["sequence"] and len(row["sequence"]) == LENGTH
        assert "label=promoter" in row["description"]
    with pytest.raises(UserError, match="only molecules are written to such a file"):
        generate.generate(f"dna:{version}", 2, str(tmp_path / "made.sdf"), 1, {})
