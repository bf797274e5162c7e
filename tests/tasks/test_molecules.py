"""Molecules are generated as asked for, each with its evidence, by a model of seconds."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rdkit import Chem

from aigc_ray import config, noise, registry, rows
from aigc_ray.adversary import Adversary
from aigc_ray.bloom import Bloom
from aigc_ray.errors import UserError
from aigc_ray.ingest import ingest
from aigc_ray.model import Model
from aigc_ray.schema import Schema
from aigc_ray.serve import openapi
from aigc_ray.task import Shortfall, Step
from aigc_ray.tasks.molecules import (
    alphabet,
    chemistry,
    data,
    design,
    growing,
    metrics,
    speaker,
    wishes,
)
from aigc_ray.tasks.molecules.chemistry import PROPERTIES
from aigc_ray.tasks.molecules.networks import Critic, Generator
from aigc_ray.tasks.molecules.task import Molecules
from tests import molecule_files

SETTINGS = {
    "activities": "none", "split": "random", "steps": 260, "adversarial_steps": 24, "width": 96,
    "critic_width": 32, "references": 60, "generator_rate": 1e-2,
}  # fmt: skip
FREE = {"filters": [], "novel": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of small molecules, and its training molecules."""
    folder = tmp_path_factory.mktemp("molecules")
    molecule_files.write(folder / "some.csv", 800)
    plain = config.override(Molecules(), SETTINGS)
    found = ingest(plain, str(folder / "some.csv"), str(folder / "data"), parallel=0)
    task = dataclasses.replace(plain, schema=Schema.from_json(found["schema"]))
    names = [field.name for field in task.schema.fields]
    columns = rows.load(str(folder / "data"), found, "train", names)
    adversary = Adversary(task, seed=0)
    feed = rows.Memory(columns, batch_size=32, seed=0).batches(0, rows.Share())

    def batch():
        number, taken = next(feed)
        return task.encode(taken, noise.keys(0, torch.from_numpy(number)))

    count = len(columns["logp"])
    adversary.prepare(iter([task.encode(columns, noise.keys(0, torch.arange(count)))]))
    while not adversary.finished:
        adversary.step(batch())
    known = {alphabet.decode(row) for row in columns["codes"]}
    return Model(task, [adversary.average], {}), known


def asked(trained, **request):
    return [*trained[0].task.generate(trained[0], FREE | request)]


def smiles(items):
    return [item["smiles"] for item in items if not isinstance(item, Shortfall)]


# --- networks ---------------------------------------------------------------------------------


def test_both_ways_to_run_over_codes_give_the_same_states():
    torch.manual_seed(0)
    generator = Generator(2, 16)
    codes = torch.zeros(5, 9, dtype=torch.int64)
    for row, length in enumerate((3, 9, 1, 5, 0)):
        codes[row, :length] = torch.randint(1, alphabet.SIZE, (length,))
    heard = generator.hear(torch.randn(5, 2), torch.ones(5, 2, dtype=torch.bool), torch.zeros(5))
    lengths = (codes > 0).sum(1) + 1
    order = lengths.argsort(descending=True, stable=True)
    padded = F.pad(codes, (0, 1))[order]
    both = [
        run(padded, lengths[order], heard[order]) for run in (generator._unrolled, generator._fused)
    ]
    torch.testing.assert_close(*both)


def test_in_bfloat16_it_says_nearly_the_same():
    torch.manual_seed(0)
    one, other = Generator(2, 32), Generator(2, 32, bf16=True)
    other.load_state_dict(one.state_dict())
    codes = torch.randint(1, alphabet.SIZE, (6, 9))
    told = torch.randn(6, 2), torch.ones(6, 2, dtype=torch.bool), torch.zeros(6)
    found = [each.log_likelihood(codes, each.hear(*told)) for each in (one, other)]
    torch.testing.assert_close(*found, rtol=0.02, atol=0.2)
    assert not torch.equal(*found)
    found[1].sum().backward()
    assert other.gru.weight_hh_l0.grad.dtype == torch.float32


def test_rings_are_open_from_the_code_that_opens_them_to_the_one_that_closes_them():
    texts = ["C1CC2CCC1CC2", "c1ccc(C2CC2)cc1", "CC", "C%12CCC%12C"]
    codes = data.codes_of(texts, 30)
    opened = Generator(8, 4)._open_rings(codes)
    for row, text in zip(opened.tolist(), texts, strict=True):
        open_rings: set[str] = set()
        for place, code in enumerate(alphabet.encode(text)):
            assert row[place] == bool(open_rings)
            for token in alphabet.tokens(alphabet.NAMES[code]):
                if token.lstrip("%").isdigit():
                    open_rings ^= {token}
        assert not any(row[len(alphabet.encode(text)) :])


def test_likelihood_is_the_product_of_what_is_said_at_each_code():
    torch.manual_seed(0)
    generator = Generator(2, 16).requires_grad_(False)
    opened = alphabet.encode("C(N1")  # a branch and a ring that are never closed
    codes = torch.tensor([[3, 7, 0, 0], [5, 0, 0, 0], [1, 2, 3, 4], [*opened, 0]])
    depth, rings = [0, 1, 1, 1], [0, 0, 0, 2]  # open before each code of the last row
    heard = generator.hear(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool), torch.zeros(4))
    found = generator.log_likelihood(codes, heard)
    for row in range(4):
        state, gates = generator.begin(heard[row : row + 1])
        before, total = torch.tensor([0]), 0.0
        for place, code in enumerate([*codes[row].tolist(), 0]):
            on_code, *weights = generator.weights()
            state = generator.step(state, on_code[before] + gates, *weights)
            here = (depth[place], rings[place]) if row == 3 else (0, 0)
            cannot = generator.cannot(*(torch.tensor([number]) for number in here))[0]
            assert bool(cannot[0]) == (here != (0, 0))
            cannot[code] = False  # what was said could be said
            logits = generator.head(state)[0].masked_fill(cannot, -torch.inf)
            total += float(torch.log_softmax(logits, 0)[code])
            before = torch.tensor([code])
            if code == 0:
                break
        assert float(found[row]) == pytest.approx(total, abs=1e-4)


def test_samples_follow_the_likelihood():
    torch.manual_seed(1)
    generator = Generator(2, 8).requires_grad_(False)
    generator.head.bias[4:] = -30  # a world of three codes and the end
    generator.head.bias[0] = 1.0
    count = 4000
    heard = generator.hear(
        torch.zeros(count, 2), torch.zeros(count, 2, dtype=torch.bool), torch.zeros(count)
    )
    said = generator.say(heard, noise.uniform(noise.keys(3, torch.arange(count)), "x", (12,)))
    drawn = Counter(tuple(row) for row in said.tolist())
    for row, times in drawn.most_common(4):
        chance = float(generator.log_likelihood(torch.tensor([row]), heard[:1]).exp())
        assert times / count == pytest.approx(chance, abs=4 * (chance / count) ** 0.5)


def test_branches_and_rings_are_closed_before_the_end():
    change, closes, rings = alphabet.effects()
    code = {name: number for number, name in enumerate(alphabet.NAMES)}
    assert (change[code["C("]], closes[code["C("]], rings[code["C("]]) == (1, 0, 0)
    assert (change[code["(C)"]], closes[code["(C)"]]) == (0, 0)
    assert (change[code["C)"]], closes[code["C)"]], rings[code["2)"]]) == (-1, 1, 4)
    assert rings[code["c1ccccc1"]] == 0 and rings[code["%10"]] == 1 << 10
    torch.manual_seed(3)
    generator = Generator(2, 8).requires_grad_(False)  # that knows no better
    generator.head.bias[0] = 3.0
    count = 2000
    heard = generator.hear(
        torch.zeros(count, 2), torch.zeros(count, 2, dtype=torch.bool), torch.zeros(count)
    )
    said = generator.say(heard, noise.uniform(noise.keys(4, torch.arange(count)), "x", (60,)))
    ended = said[(said == 0).any(1)]
    assert len(ended) > 200
    for row in ended.tolist():
        depth, open_rings = 0, set()
        for token in alphabet.tokens(alphabet.decode(row)):
            depth += (token == "(") - (token == ")")
            assert depth >= 0
            if token.lstrip("%").isdigit():
                open_rings ^= {token.lstrip("%")}
        assert depth == 0 and not open_rings


def test_a_prompt_is_said_first_and_guidance_moves_away_from_what_is_not_told():
    torch.manual_seed(2)
    generator = Generator(2, 8)
    one = torch.ones(6, 2)
    told = torch.ones(6, 2, dtype=torch.bool)
    random = noise.uniform(noise.keys(3, torch.arange(6)), "x", (12,))
    heard, unheard = (generator.hear(one, t, torch.zeros(6)) for t in (told, ~told))
    prompt = torch.tensor([[5, 6, 0]] * 3 + [[9, 0, 0]] * 3)
    said = generator.say(heard, random, prompt=prompt)
    assert (said[:3, :2] == torch.tensor([5, 6])).all()
    assert (said[3:, 0] == 9).all()
    plain = generator.say(heard, random)
    assert torch.equal(plain, generator.say(heard, random, unheard=heard, guidance=2.0))
    guided = generator.say(heard, random, unheard=unheard, guidance=50.0)
    assert not torch.equal(plain, guided)
    # One row for all is what as many like it are; a single row is guided as one of many.
    assert torch.equal(plain, generator.say(heard[:1], random))
    for row in range(6):
        alone = slice(row, row + 1)
        made = generator.say(heard[alone], random[alone], unheard=unheard[alone], guidance=50.0)
        assert torch.equal(made, guided[alone])


def test_wishes_for_properties_are_guided_and_those_for_activities_are_not():
    guided = {"targets": {"logp": 2}}, {"qed": [0.8, 1.0]}, {"mw": 300, "guidance": 0.5}
    for request in guided:
        assert wishes.wanted(request, ()).guidance == 0.5
    for request in {"n": 3}, {"targets": {"potency": 1}}, {"mw": 300, "guidance": 0}:
        assert wishes.wanted(request, ("potency",)).guidance == 0


def test_the_description_of_the_api_tells_the_usual_temperature():
    found = json.dumps(openapi.GENERATE)
    assert f'"temperature": {{"type": "number", "default": {wishes.TEMPERATURE},' in found


def test_what_comes_of_said_codes_is_canonical_and_they_stay_as_they_are():
    texts = ["OCC", "c1ccccc1C", "CC(", "C1CC"]
    said = data.codes_of(texts, 20)
    before = said.clone()
    found, valid = data.canonical(said)
    assert valid.tolist() == [True, True, False, False] and torch.equal(said, before)
    assert data.smiles_of(found) == ["CCO", "Cc1ccccc1", "CC(", "C1CC"]


def test_what_was_in_no_training_molecule_is_never_said(trained):
    generator = trained[0].members[0]["generator"]
    unseen = (~generator.seen).nonzero()[:, 0].tolist()
    assert len(unseen) > 20
    count = 500
    heard = generator.hear(
        generator.prior[:count], torch.ones(count, len(PROPERTIES), dtype=torch.bool),
        torch.zeros(count),
    )  # fmt: skip
    said = generator.say(heard, noise.uniform(noise.keys(1, torch.arange(count)), "x", (80,)))
    assert not set(said.unique().tolist()) & set(unseen)


def test_a_sample_longer_than_any_training_molecule_is_broken_off(trained):
    member, known = trained[0].members[0], trained[1]
    generator = member["generator"]
    longest = int(generator.longest)
    assert longest >= max(len(alphabet.encode(text)) for text in known)
    count = 300
    unlike = torch.randn(count, 64) * 5
    random = noise.uniform(noise.keys(1, torch.arange(count)), "x", (80,))
    lengths = (generator.say(unlike, random) > 0).sum(1)
    assert lengths.max() == longest < 80
    prompt = torch.full((count, longest + 3), alphabet.encode("C")[0])  # as a scaffold may be
    assert ((generator.say(unlike, random, prompt=prompt) > 0).sum(1) >= longest + 3).all()


def test_rows_do_not_touch_each_other_in_the_critic():
    torch.manual_seed(0)
    critic = Critic(2, 16, 0.1).eval()
    codes = torch.randint(1, alphabet.SIZE, (6, 24))
    for row, length in enumerate((24, 3, 0, 11, 1, 23)):
        codes[row, length:] = alphabet.END
    together = critic.read(codes)
    for row in range(6):
        torch.testing.assert_close(critic.read(codes[row : row + 1])[0], together[row])
    # What a place is made of is itself and its neighbours, as a padded convolution has them.
    length = 11
    place = F.pad(critic.embedding(codes[3, : length + 1]), (0, 0, 1, 1))
    hidden = critic.first(torch.cat([place[:-2], place[1:-1], place[2:]], 1))
    for block, far in zip(critic.blocks, (1, 2, 4, 8), strict=True):
        weight = block.wide.weight.reshape(16, 3, 16).transpose(1, 2)
        wide = F.conv1d(F.silu(hidden).t()[None], weight, block.wide.bias, 1, far, far)[0].t()
        hidden = hidden + block.narrow(F.silu(wide))
    torch.testing.assert_close(together[3], torch.cat([hidden.mean(0), hidden.amax(0)]))


# --- a set in fixed memory --------------------------------------------------------------------


def test_a_filter_finds_all_its_members_and_few_strangers():
    found = Bloom(np.zeros(1 << 12, np.uint8))
    found.add(f"member {n}" for n in range(3000))
    assert found.holds([f"member {n}" for n in range(3000)]).all()
    assert found.holds([f"stranger {n}" for n in range(3000)]).mean() < 0.02
    assert not Bloom(np.zeros(1 << 12, np.uint8)).holds(["a"]).any()


# --- what is generated ------------------------------------------------------------------------


def test_as_many_as_asked_for_each_once_valid_and_canonical(trained):
    made = smiles(asked(trained, n=100, evidence=False))
    assert len(made) == len(set(made)) == 100
    assert all(chemistry.smiles(chemistry.read(text)) == text for text in made)


def test_the_same_seed_gives_the_same_and_fewer_are_the_first_of_more(trained):
    first = smiles(asked(trained, n=40, seed=3))
    assert smiles(asked(trained, n=40, seed=3)) == first
    assert smiles(asked(trained, n=10, seed=3)) == first[:10]
    assert smiles(asked(trained, n=40, seed=4)) != first


def test_novel_ones_are_in_no_training_set_and_each_tells_its_nearest(trained):
    _, known = trained
    for item in asked(trained, n=15, novel=True):
        assert item["smiles"] not in known
        assert item["in_training"] is False
        near = item["nearest"]
        assert near["smiles"] in known
        one, other = (chemistry.read(text) for text in (item["smiles"], near["smiles"]))
        alike = chemistry.similarity(
            chemistry.fingerprint(one), chemistry.fingerprint(other)[None]
        )[0]
        assert near["similarity"] == pytest.approx(alike, abs=1e-4)
    told = [item for item in asked(trained, n=400) if item["smiles"] in known]
    assert told
    assert all(item["in_training"] for item in told)


def test_evidence_is_what_rdkit_computes(trained):
    for item in asked(trained, n=5, svg=True, molblock=True):
        molecule = chemistry.read(item["smiles"])
        assert item["properties"]["mw"] == pytest.approx(chemistry.weight(molecule), abs=1e-3)
        assert item["inchi_key"] == chemistry.inchi_key(molecule)
        assert item["alerts"] == chemistry.alerts(molecule)
        assert 0 < item["critic"] < 1
        assert item["svg"].lstrip().startswith("<?xml")
        assert chemistry.smiles(Chem.MolFromMolBlock(item["molblock"])) == item["smiles"]


def test_targets_are_told_and_kept(trained):
    light = asked(trained, n=20, targets={"mw": [80, 120], "rings": 0}, evidence=True)
    assert len(light) == 20
    for item in light:
        assert 80 <= item["properties"]["mw"] <= 120
        assert item["properties"]["rings"] == 0
        assert item["targets"]["rings"] == {"wished": 0.0, "obtained": 0.0}
    # What the generator is told moves what it says, before anything is left out.
    voice = speaker.Speaker(trained[0].members[0], 80)
    weights = []
    for low, high in ((80, 100), (150, 170)):
        wanted = wishes.wanted(FREE | {"n": 1, "mw": [low, high], "critic": False}, ())
        said = speaker.candidates(voice, wanted, speaker.plain(voice, wanted), 200, Counter())
        weights.append(np.mean([chemistry.weight(one.molecule) for one in said]))
    assert weights[1] > weights[0] + 30


def test_alerts_name_atoms_of_the_smiles_that_is_told(trained):
    """Whichever atom the generator said first."""
    model, _ = trained
    judge = design.Judge(wishes.wanted(FREE, ()), model.members[0]["memory"])
    patterns = [Chem.MolFromSmarts("[N+](=O)[O-]"), Chem.MolFromSmarts("[CX3H1](=O)")]
    for text in ("O=Cc1cc([N+](=O)[O-])ccc1", "[O-][N+](=O)c1cccc(C=O)c1"):
        said = chemistry.read(text)
        one = speaker.Candidate(said, chemistry.smiles(said), 0, None)
        told = judge.item(one)
        (answered,) = model.predict([{"smiles": text}])
        shown = chemistry.read(told["smiles"])
        places = [set(shown.GetSubstructMatch(pattern)) for pattern in patterns]
        for alerts in (told["alerts"], answered["alerts"]):
            marked = [set(alert["atoms"]) for alert in alerts]
            assert all(any(place & atoms for atoms in marked) for place in places)
            for alert in alerts:
                if alert["name"].lower().startswith("nitro"):
                    assert set(alert["atoms"]) & places[0]
        assert told["alerts"] == answered["alerts"]


def test_nothing_is_told_where_nothing_is_asked(trained):
    voice = speaker.Speaker(trained[0].members[0], trained[0].task.length)
    free, bound = (wishes.wanted(FREE | more, ()) for more in ({}, {"logp": [1, 2]}))
    assert voice.wishes(free, np.arange(9)).isnan().all()
    told = voice.wishes(bound, np.arange(9))
    assert told.isfinite().all()
    logp = told[:, PROPERTIES.index("logp")]
    assert ((logp >= 1) & (logp <= 2)).all()


def test_patterns_are_had_and_not_had(trained):
    made = asked(trained, n=10, must_have=["c1ccccc1"], must_not_have=["[F,Cl]"], evidence=False)
    assert len(made) == 10
    for text in smiles(made):
        molecule = chemistry.read(text)
        assert molecule.HasSubstructMatch(Chem.MolFromSmarts("c1ccccc1"))
        assert not molecule.HasSubstructMatch(Chem.MolFromSmarts("[F,Cl]"))


def test_filters_leave_no_alert(trained):
    names = ["pains", "brenk", "moses"]
    for item in asked(trained, n=10, filters=names):
        assert item["alerts"] == []


def test_similar_ones_are_as_similar_as_asked(trained):
    like = chemistry.fingerprint(chemistry.read("CCc1ccc(C)cc1"))
    made = asked(trained, n=5, similar_to="CCc1ccc(C)cc1", similarity=[0.4, 0.9], evidence=False)
    assert len(made) == 5
    for text in smiles(made):
        alike = chemistry.similarity(like, chemistry.fingerprint(chemistry.read(text))[None])[0]
        assert 0.4 <= alike <= 0.9


def test_what_is_similar_to_a_molecule_is_another_one(trained):
    (one,) = smiles(asked(trained, evidence=False))
    made = asked(trained, n=20, similar_to=one, similarity=[0.3, 1.0], evidence=False)
    assert len(smiles(made)) > 5 and one not in smiles(made)


def test_similar_ones_are_found_where_few_molecules_are():
    """Among any molecules there are none: of 4,160 samples none was as similar."""
    model, aspirin = Model.open(registry.fetch("molecules@pretrained")), "CC(=O)Oc1ccccc1C(=O)O"
    assert len(smiles(asked((model,), n=4, similar_to=aspirin, evidence=False))) == 4


def test_diverse_ones_are_farther_from_each_other(trained):
    plain, diverse = (
        smiles(asked(trained, n=12, diverse=wish, evidence=False)) for wish in (False, True)
    )
    assert len(diverse) == len(set(diverse)) == 12
    spread = [
        metrics.diversity(metrics.fingerprints([chemistry.read(t) for t in part]))
        for part in (plain, diverse)
    ]
    assert spread[1] > spread[0]


@pytest.mark.parametrize(
    "scaffold",
    ["[*]c1ccccc1", "[*]c1ccc([*])cc1", "O=C(N[*])c1cccc([*])c1", "[*]N1CCN([*])CC1", "[*]n1cccc1",
     "C[C@H]([*])O"],
)  # fmt: skip
def test_a_scaffold_is_kept_whole_and_bound_at_its_points_alone(trained, scaffold):
    made = asked(trained, n=8, scaffold=scaffold, evidence=False)
    assert len(smiles(made)) == 8
    # As a pattern in which only the marked atoms may have further neighbours.
    part = wishes.marked(scaffold, "scaffold")
    for text in smiles(made):
        molecule = chemistry.read(text)
        fits = []
        for match in molecule.GetSubstructMatches(part.molecule, uniquify=False):
            more = Counter({place: part.points.count(place) for place in part.points})
            fits.append(
                all(
                    molecule.GetAtomWithIdx(there).GetDegree()
                    - part.molecule.GetAtomWithIdx(place).GetDegree()
                    == more[place]
                    or (place in more and molecule.GetAtomWithIdx(there).GetDegree() > 1)
                    for place, there in enumerate(match)
                )
            )
        assert any(fits), text


def test_two_fragments_are_linked(trained):
    made = asked(trained, n=6, fragments=["[*]c1ccccc1", "[*]N1CCCCC1"], evidence=False)
    assert len(smiles(made)) == 6
    for text in smiles(made):
        molecule = chemistry.read(text)
        for part in ("c1ccccc1", "N1CCCCC1"):
            assert molecule.HasSubstructMatch(Chem.MolFromSmarts(part))


def test_a_symmetric_fragment_is_linked_where_it_is_marked(trained):
    made = asked(trained, n=4, fragments=["[*]c1ccccc1", "C1CCNCC1[*]"], evidence=False)
    assert len(smiles(made)) == 4
    third = Chem.MolFromSmarts("[*;!#1][CX4;R]1CCCNC1")
    assert all(chemistry.read(text).HasSubstructMatch(third) for text in smiles(made))


def test_optimisation_finds_better_than_chance(trained):
    plain = [
        chemistry.property_of(chemistry.read(text), "logp")
        for text in smiles(asked(trained, n=100, evidence=False))
    ]
    best = asked(trained, n=5, optimise="logp", rounds=4)
    values = [item["properties"]["logp"] for item in best]
    assert values == sorted(values, reverse=True)
    assert np.mean(values) > max(plain)
    lowest = asked(trained, n=3, optimise="-logp", rounds=2)
    assert lowest[0]["properties"]["logp"] < min(plain) + 0.5


def test_a_callers_own_function_is_optimised_and_its_fault_is_told(trained):
    made = asked(trained, n=3, rounds=3, score=lambda text: text.count("O"), evidence=False)
    assert smiles(made)[0].count("O") >= 3
    with pytest.raises(UserError, match="score raised ZeroDivisionError for"):
        asked(trained, n=1, score=lambda text: 1 / 0)


def test_what_contradicts_itself_ends_with_its_reasons_counted(trained):
    wish = {"mw": [300, 310], "rings": 0, "hba": 9, "logp": [7, 8]}
    *items, short = asked(trained, n=2, targets=wish, evidence=False)
    assert items == []
    assert short.missing == 2
    assert "missed the target of" in short.reason
    assert "were no molecule" in short.reason
    counts = [int(word) for word in short.reason.split() if word.isdecimal()]
    assert counts[0] == sum(counts[1:])
    least = design.TRIES + 2 * design.EACH
    assert least <= counts[0] <= speaker.TIMES * least


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"n": 0}, "n is a whole number from 1 to 10000; got 0"),
        ({"n": 10**7}, "n is at most 10000 in a request; got 10000000: `aigc-ray generate"),
        ({"colour": 1}, "got colour"),
        ({"scaffold": "c1ccccc1"}, r"scaffold needs an attachment point, written \[\*\]"),
        ({"scaffold": "[*]=C"}, "by a single bond"),
        ({"scaffold": "xyz"}, "scaffold is a SMILES"),
        ({"scaffold": "[*]C", "fragments": ["[*]C", "[*]C"]}, "exclude each other"),
        ({"fragments": ["[*]C"]}, "fragments are two SMILES"),
        ({"fragments": ["[*]C[*]", "[*]C"]}, "fragments are two SMILES, each with one"),
        ({"must_have": ["(("]}, "must_have is a list of SMARTS patterns"),
        ({"must_not_have": [3]}, "must_not_have is a list of SMARTS patterns"),
        ({"filters": ["all"]}, "filters is a list of pains, brenk, moses; got 'all'"),
        ({"targets": {"colour": 1}}, "targets are of logp"),
        ({"targets": 3}, "targets is an object"),
        ({"logp": "high"}, "logp is a number or a range"),
        ({"logp": [3, 2]}, r"logp is a range \[low, high\]"),
        ({"qed": float("nan")}, "qed is a number"),
        ({"temperature": 0}, "temperature is a number from 0.1 to 3"),
        ({"similar_to": "xyz"}, "similar_to: 'xyz' is not a SMILES"),
        ({"similarity": [0, 2]}, "similarity is a range"),
        ({"novel": "perhaps"}, "novel is true or false"),
        ({"optimise": "beauty"}, "optimise is one of"),
        ({"optimise": "logp", "score": len}, "exclude each other"),
        ({"score": "len"}, "score is a Python function"),
    ],
)
def test_a_request_that_cannot_be_is_refused_in_words(trained, request_, words):
    with pytest.raises(UserError, match=words):
        asked(trained, **request_)


def test_words_of_a_command_line_mean_the_same(trained):
    typed = {"n": 5, "mw": "80:150", "rings": "1", "filters": "none", "novel": "no"}
    assert wishes.wanted(typed, ()) == wishes.wanted(
        {"n": 5, "targets": {"mw": [80, 150], "rings": 1}, "filters": [], "novel": False}, ()
    )


# --- parts ------------------------------------------------------------------------------------


def test_a_smiles_that_ends_at_an_atom_is_the_same_molecule():
    for text in ("CC(=O)Nc1ccc(O)cc1", "C1CC2CCC1C2", "c1ccc2[nH]ccc2c1", "C[C@H](N)C(=O)O"):
        molecule = chemistry.read(text)
        for point in range(molecule.GetNumAtoms()):
            if not molecule.GetAtomWithIdx(point).GetTotalNumHs():
                continue
            begun = growing.begun(molecule, point, seed=point)
            assert begun is not None
            grown = growing.grown(begun, molecule, point, f"{begun.text}C")
            assert grown is not None
            assert grown.molecule.GetNumAtoms() == molecule.GetNumAtoms() + 1
            last = grown.molecule.GetAtomWithIdx(molecule.GetNumAtoms())
            assert last.GetNeighbors()[0].GetIdx() == grown.points[point]


def test_what_is_bound_elsewhere_is_not_taken():
    molecule = chemistry.read("CCO")
    begun = growing.begun(molecule, 0, seed=0)
    assert begun is not None
    assert growing.grown(begun, molecule, 0, "OC(N)C") is None
    assert growing.grown(begun, molecule, 0, begun.text) is None  # nothing was attached


# --- measures ---------------------------------------------------------------------------------


def test_measures_of_a_case_by_hand():
    one = ["CCO", "CCO", "c1ccccc1", "xyz"]
    made = metrics.molecules(one)
    assert len(made) == 3
    bits = metrics.fingerprints(made)
    ring, chain = (set(np.flatnonzero(row)) for row in (bits[2], bits[0]))
    alike = len(ring & chain) / len(ring | chain)
    assert metrics.diversity(bits) == pytest.approx(1 - (5 + 4 * alike) / 9)
    assert metrics.nearest(bits[2:], bits[:1]) == pytest.approx(alike)
    assert metrics.cosine({"a": 3, "b": 4}, {"a": 3}) == pytest.approx(0.6)
    found = metrics.compared(["CCO", "c1ccccc1", "CCN"], one)
    assert found["valid"] == 0.75
    assert found["unique"] == pytest.approx(2 / 3)
    same = metrics.compared(["CCO", "CCN"], ["CCO", "CCN"])
    assert same["logp_distance"] == 0


def test_the_distance_of_gaussians():
    mean, spread = np.array([1.0, 2.0]), np.array([[2.0, 0.3], [0.3, 1.0]])
    assert metrics.frechet((mean, spread), (mean, spread)) == pytest.approx(0, abs=1e-9)
    far = metrics.frechet((mean, np.diag([4.0, 9.0])), (mean + 3, np.diag([1.0, 1.0])))
    assert far == pytest.approx(18 + (2 - 1) ** 2 + (3 - 1) ** 2)


def test_scaffolds_and_fragments():
    molecule = chemistry.read("O=C(Nc1ccccc1)c1ccncc1")
    assert metrics.scaffolds(molecule) == ["O=C(Nc1ccccc1)c1ccncc1"]
    assert metrics.scaffolds(chemistry.read("CCc1ccccc1")) == []  # one ring
    assert len(metrics.fragments(molecule)) == 4  # both rings, and the amide's halves


# --- the adversarial part ---------------------------------------------------------------------


def test_the_copy_without_the_critic_starts_where_the_generator_does(trained):
    networks = trained[0].members[0]
    one, other = (networks[name].head.weight for name in ("generator", "likelihood"))
    assert not torch.equal(one, other)
    assert (one - other).abs().mean() < 0.1 * one.abs().mean()


@pytest.mark.parametrize("part", ["push", "penalty"])
def test_odds_and_penalty_raise_what_looks_real_and_lower_what_is_no_molecule(trained, part):
    model, _ = trained
    task = dataclasses.replace(model.task, **{"push": 0.0, "penalty": 0.0, part: 0.5})
    adversary = Adversary(task, seed=0)
    adversary.networks.load_state_dict(model.members[0].state_dict())
    networks = adversary.networks.requires_grad_(True)
    generator = networks["generator"]
    count = 64
    row = noise.keys(5, torch.arange(count))
    batch = task.encode({}, row)
    batch = batch._replace(
        value=batch.value | {name: generator.prior[:count, n] for n, name in enumerate(PROPERTIES)},
        known=batch.known | dict.fromkeys(PROPERTIES, torch.ones(count, dtype=torch.bool)),
    )
    fake = task.draw(networks, batch)
    valid = fake.known["codes"]
    assert 0 < valid.sum() < count

    def mean(value, weight):
        return (value * weight).sum() / weight.sum()

    turn = Step(mean, 0, 0.5, 0.0, lambda name, value: None)
    alone = dataclasses.replace(task, **{part: 0.0})
    with_it = task._adversarial_loss(networks, batch, fake, turn)
    without = alone._adversarial_loss(networks, batch, fake, turn)
    (with_it - without).backward()
    wish = fake.value["wish"], fake.value["told"], torch.zeros(count)
    heard = generator.hear(*wish)
    before = generator.log_likelihood(fake.value["codes"], heard).detach()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter -= 1e-3 * parameter.grad
        moved = generator.log_likelihood(fake.value["codes"], generator.hear(*wish))
    change = moved - before
    assert change[~valid].mean() < change[valid].mean()
    assert change[~valid].mean() < 0
