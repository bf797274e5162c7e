"""Structures of proteins: pictures and back, backbones, and the figures that judge them."""

from __future__ import annotations

import math

import gemmi
import pytest
import torch
from torch import Tensor

from aigc_ray.tasks.proteins import backbone, geometry, metrics, structures
from aigc_ray.tasks.proteins.recovery import recover

HELIX, STRAND = (-60.0, -45.0), (-120.0, 135.0)  # φ, ψ
MIRROR = torch.tensor([1.0, 1.0, -1.0])


def chain(angles: list[tuple[float, float]], noise: float = 0.0, seed: int = 0) -> Tensor:
    """(L, 3, 3) N, CA, C of a chain with these φ and ψ in degrees, built atom by atom."""
    wanted = torch.tensor(angles, dtype=torch.float64)
    wanted = wanted + noise * torch.randn(
        wanted.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    phi, psi = torch.deg2rad(wanted).unbind(1)
    omega = torch.tensor(math.pi, dtype=torch.float64)
    at_ca, at_c, at_n = (
        torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        for degrees in (backbone.N_CA_C, backbone.CA_C_N, backbone.C_N_CA)
    )
    n = torch.zeros(3, dtype=torch.float64)
    ca = torch.tensor([backbone.N_CA, 0, 0], dtype=torch.float64)
    c = ca + backbone.CA_C * torch.tensor(
        [-math.cos(float(at_ca)), math.sin(float(at_ca)), 0], dtype=torch.float64
    )
    atoms = [n, ca, c]
    for i in range(1, len(angles)):
        atoms.append(geometry.place(*atoms[-3:], backbone.C_N, at_c, psi[i - 1]))
        atoms.append(geometry.place(*atoms[-3:], backbone.N_CA, at_n, omega))
        atoms.append(geometry.place(*atoms[-3:], backbone.CA_C, at_ca, phi[i]))
    return torch.stack(atoms).reshape(-1, 3, 3).float()


def trace(angles: list[tuple[float, float]], noise: float = 0.0, seed: int = 0) -> Tensor:
    return chain(angles, noise, seed)[:, 1]


TURN = [(-120.0, 135.0), (-80.0, 80.0), (57.0, 45.0), (-70.0, 145.0)]  # brings the chain back
HAIRPIN = [HELIX] * 22 + TURN + [HELIX] * 22


@pytest.fixture(scope="module")
def traces() -> Tensor:
    """(6, 48, 3): two helices and a turn between them, each a little different."""
    return torch.stack([trace(HAIRPIN, noise=2, seed=seed) for seed in range(6)])


@pytest.fixture(scope="module")
def helix() -> Tensor:
    return trace([HELIX] * 24)[None]


def turned(ca: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    return ca @ (q * torch.linalg.det(q)) + torch.tensor([3.0, -7.0, 20.0])


# --- geometry ---------------------------------------------------------------------------------


def test_alpha_helix_has_the_distances_and_the_turn_that_are_known_of_it(helix):
    distance = geometry.distances(helix)[0]
    for separation, expected in ((1, 3.8), (2, 5.5), (3, 5.1), (4, 6.2)):
        assert distance.diagonal(separation).mean().item() == pytest.approx(expected, abs=0.2)
    dihedral = torch.rad2deg(geometry.dihedrals(helix))
    torch.testing.assert_close(dihedral, torch.full_like(dihedral, 50), atol=3, rtol=0)
    assert geometry.chirality(helix).mean().item() == pytest.approx(0.77, abs=0.04)
    rise = distance[0, 18] / 18  # five whole turns
    assert rise.item() == pytest.approx(1.5, abs=0.05)


def test_strand_is_stretched_and_turns_slightly_left():
    ca = trace([STRAND] * 12)[None]
    assert torch.all(geometry.chirality(ca) < 0.1)
    assert geometry.distances(ca)[0].diagonal(2).mean().item() == pytest.approx(6.5, abs=0.5)
    assert torch.all(geometry.distances(ca)[0].diagonal(3) > 9)


def test_picture_is_symmetric_with_a_diagonal_of_zeros_and_can_be_read_back(traces):
    picture = geometry.image(traces)
    assert picture.shape == (6, 2, 48, 48)
    assert torch.equal(picture, picture.mT)
    assert torch.all(picture.diagonal(0, -2, -1) == 0)
    torch.testing.assert_close(
        geometry.unscaled(picture[:, 0]), geometry.distances(traces), atol=1e-3, rtol=1e-4
    )
    torch.testing.assert_close(geometry.read_chirality(picture[:, 1]), geometry.chirality(traces))


def test_only_the_second_channel_tells_a_mirror_image(traces):
    here, there = geometry.image(traces), geometry.image(traces * MIRROR)
    torch.testing.assert_close(here[:, 0], there[:, 0])
    torch.testing.assert_close(here[:, 1], -there[:, 1])
    assert here[:, 1].abs().max() > 0.7


def test_picture_has_finite_slopes_everywhere(traces):
    ca = traces[:1].clone()
    ca[0, 5] = ca[0, 4]  # two atoms in one place
    ca.requires_grad_()
    geometry.image(ca).square().sum().backward()
    assert torch.isfinite(ca.grad).all() and ca.grad.abs().sum() > 0


def test_picture_changes_with_the_atoms_as_its_slope_says():
    ca = trace(HAIRPIN[:8], noise=5).double()[None].requires_grad_()
    assert torch.autograd.gradcheck(geometry.image, ca)


def test_rmsd_ignores_where_a_structure_is_and_sees_which_hand_it_is(traces):
    assert torch.all(geometry.rmsd(turned(traces), traces) < 1e-3)
    assert torch.all(geometry.rmsd(traces * MIRROR, traces) > 1)
    torch.testing.assert_close(
        geometry.superpose(turned(traces), traces), traces, atol=1e-3, rtol=0
    )


def test_rmsd_of_all_pairs_is_that_of_each(traces):
    others = torch.cat([turned(traces[:2]), traces[3:] * MIRROR])
    expected = torch.stack([geometry.rmsd(row.expand_as(others), others) for row in traces])
    found = geometry.rmsd_matrix(traces, others).float()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def test_tm_score_is_one_for_a_copy_and_forgives_a_part_that_has_moved(traces):
    assert torch.all(geometry.tm_score(turned(traces), traces) > 0.9999)
    bent = traces.clone()
    bent[:, 30:] = traces[:, 30:] + torch.tensor([0.0, 0.0, 25.0])
    score = geometry.tm_score(bent, traces)
    assert torch.all(score > 30 / 48 - 0.01) and torch.all(score < 0.8)


# --- recovery ---------------------------------------------------------------------------------


def assert_a_chain(ca: Tensor) -> None:
    assert torch.isfinite(ca).all()
    assert metrics.bond_ok(ca) >= 0.99


def test_structure_comes_back_from_its_distances(traces):
    found = recover(geometry.distances(traces))
    assert torch.all(geometry.rmsd(found.ca, traces) < 0.3)
    assert torch.all(found.stress < 0.1)
    assert_a_chain(found.ca)
    assert metrics.right_handed(found.ca) == (1.0, 12)


def test_chirality_decides_between_mirror_images(traces):
    mirrored = traces * MIRROR
    chirality = geometry.chirality(mirrored)
    torch.testing.assert_close(chirality, -geometry.chirality(traces))
    found = recover(geometry.distances(mirrored), chirality)
    assert torch.all(geometry.rmsd(found.ca, mirrored) < 0.3)
    # Without it a chain of left-handed helices is not believed.
    assert torch.all(geometry.rmsd(recover(geometry.distances(mirrored)).ca, traces) < 0.3)


def test_structure_comes_back_from_distances_with_errors(traces):
    noise = torch.randn(6, 48, 48, generator=torch.Generator().manual_seed(2))
    found = recover((geometry.distances(traces) + noise).clamp_min(0), geometry.chirality(traces))
    assert geometry.rmsd(found.ca, traces).median() < 1
    assert_a_chain(found.ca)
    assert metrics.clash_rate(found.ca).pairs < 0.005
    assert metrics.right_handed(found.ca).right == 1


def test_structure_comes_back_from_bytes_and_from_distances_cut_off(traces):
    exact = geometry.distances(traces)
    in_bytes = geometry.unscaled((geometry.scaled(exact) * 255).round() / 255)
    assert torch.all(geometry.rmsd(recover(in_bytes).ca, traces) < 0.5)
    cut = (exact.clamp(max=25) / 25 * 255).round() / 255 * 25
    found = recover(cut, geometry.chirality(traces), limit=24.99)
    assert torch.all(geometry.rmsd(found.ca, traces) < 0.5)


def test_unknown_distances_are_done_without(traces):
    distance = geometry.distances(traces)
    distance[:, 5, 20:30] = math.nan
    assert torch.all(geometry.rmsd(recover(distance).ca, traces) < 0.3)


@pytest.mark.parametrize("what", ["random", "zeros", "far", "unknown", "negative"])
def test_garbage_gives_a_chain_or_at_least_numbers(what):
    random = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3)) * 30
    table = {
        "random": random,
        "zeros": torch.zeros_like(random),
        "far": torch.full_like(random, 1e4),
        "unknown": torch.full_like(random, math.nan),
        "negative": -random,
    }[what]
    found = recover(table, steps=60)
    assert torch.isfinite(found.ca).all() and torch.isfinite(found.stress).all()
    if what in ("random", "far"):
        assert_a_chain(found.ca)


def test_row_does_not_depend_on_what_shares_its_batch(traces):
    noise = torch.randn(6, 48, 48, generator=torch.Generator().manual_seed(4))
    table = geometry.distances(traces) + noise
    together, alone = recover(table).ca, recover(table[2:3]).ca
    torch.testing.assert_close(together[2:3], alone, atol=1e-3, rtol=0)
    assert torch.equal(together, recover(table).ca)


# --- backbones --------------------------------------------------------------------------------


def test_helix_gets_the_backbone_of_a_helix(helix):
    atoms = backbone.backbone(helix)
    assert torch.equal(atoms[:, :, 1], helix)
    phi, psi, omega = (torch.rad2deg(angle) for angle in backbone.torsions(atoms))
    torch.testing.assert_close(phi, torch.full_like(phi, HELIX[0]), atol=8, rtol=0)
    torch.testing.assert_close(psi, torch.full_like(psi, HELIX[1]), atol=8, rtol=0)
    assert torch.all(omega.abs() > 179)


def test_backbone_is_near_the_one_the_trace_was_taken_from():
    whole = chain(HAIRPIN, noise=4, seed=7)
    atoms = backbone.backbone(whole[None, :, 1])[0]
    error = (atoms[:, [0, 2]] - whole[:, [0, 2]]).norm(dim=-1)
    assert error.square().mean().sqrt() < 0.4
    assert metrics.ramachandran_allowed(atoms[None]).allowed >= 0.9
    bonds = (atoms[:-1, 2] - atoms[1:, 0]).norm(dim=-1)
    assert torch.all((bonds - backbone.C_N).abs() < 0.05)


def test_turned_trace_gets_a_turned_backbone(traces):
    atoms = backbone.backbone(traces)
    again = backbone.backbone(turned(traces))
    expected = turned(atoms.flatten(0, 1)).reshape_as(atoms)
    assert ((again - expected).norm(dim=-1) < 0.05).float().mean() > 0.99


def test_beta_carbon_makes_an_l_amino_acid(helix):
    atoms = backbone.backbone(helix)
    n, ca, c = (atoms[0, :, i] for i in range(3))
    cb = backbone.beta_carbons(atoms)[0]
    torch.testing.assert_close((cb - ca).norm(dim=-1), torch.full((24,), 1.53))
    # Seen from hydrogen, CO, R and N go clockwise.
    volume = (torch.linalg.cross(n - ca, c - ca) * (cb - ca)).sum(-1)
    assert torch.all(volume > 0)


def test_pdb_file_is_read_back_by_another_program(helix):
    atoms = backbone.backbone(helix)[0]
    sequence = "ACDEFGHIKLMNPQRSTVWYGGXA"
    text = backbone.to_pdb(atoms, sequence, ["two words", "y" * 80], "H" * 12 + "C" * 4 + "E" * 8)
    assert {len(line) for line in text.splitlines()} == {80}
    assert text.startswith("EXPDTA    THEORETICAL MODEL ") and structures.theoretical(text.encode())
    structure = gemmi.read_pdb_string(text)
    (model,) = structure
    (read,) = model
    names = [gemmi.find_tabulated_residue(one.name).one_letter_code for one in read]
    assert "".join(names).upper() == sequence
    for residue, expected in zip(read, atoms, strict=True):
        for name, place in zip(("N", "CA", "C", "O"), expected.tolist(), strict=True):
            atom = residue.find_atom(name, "*")
            assert atom.pos.tolist() == pytest.approx(place, abs=0.001)
            assert atom.element.name == name[0]
        assert ("CB" in [atom.name for atom in residue]) == (residue.name != "GLY")
    (found,) = structure.helices
    assert (found.start.res_id.seqid.num, found.end.res_id.seqid.num) == (1, 12)
    assert len(structure.sheets) == 1
    assert text.count("REMARK") == 3 and "\nTER " in text and text.rstrip().endswith("END")


def test_pdb_file_needs_a_letter_for_each_residue(helix):
    with pytest.raises(ValueError, match="one letter a residue, 24; got 3"):
        backbone.to_pdb(backbone.backbone(helix)[0], "AAA")


# --- metrics ----------------------------------------------------------------------------------


def straight(*bonds: float) -> Tensor:
    """A straight chain along x with these bonds, in ångström."""
    places = torch.tensor([0.0, *bonds]).cumsum(0)
    return torch.stack([places, torch.zeros_like(places), torch.zeros_like(places)], dim=-1)[None]


def test_one_long_bond_of_four_and_one_of_a_cis_peptide():
    assert metrics.bond_ok(straight(3.8, 3.85, 4.1, 3.75)) == 0.75
    assert metrics.raw_bond_ok(geometry.distances(straight(3.8, 3.85, 4.05, 4.2))) == 0.75
    assert metrics.cis_rate(straight(3.8, 2.9, 3.8, 3.8)) == 0.25


def test_two_atoms_that_clash_are_one_pair_of_one_structure():
    ca = straight(*[3.8] * 4).repeat(2, 1, 1)
    ca[0, 4] = ca[0, 0] + torch.tensor([0.0, 3.0, 0.0])
    # Five residues have three pairs that are three apart or more.
    pairs, structures = metrics.clash_rate(ca)
    assert pairs == pytest.approx(1 / 6) and structures == 0.5


def test_mirror_image_is_left_handed(traces):
    assert metrics.right_handed(traces) == (1.0, 12)
    assert metrics.right_handed(traces * MIRROR) == (0.0, 12)
    assert math.isnan(metrics.right_handed(trace([STRAND] * 16)[None]).right)


def test_secondary_structure_of_two_sets_is_compared(traces, helix):
    strands = trace([STRAND] * 12)[None]
    assert metrics.secondary_js(traces, traces) == 0
    assert metrics.secondary_js(helix, strands) > 0.8
    assert metrics.secondary_js(traces, helix) < 0.2


def test_ramachandran_knows_where_residues_are_and_where_none_is(helix):
    assert metrics.ramachandran_allowed(backbone.backbone(helix)) == (1.0, 1.0)
    for angles, level in (((60, 40), 1.0), ((60, -100), 0.0), ((-120, 135), 1.0)):
        atoms = chain([angles] * 8)[None]
        assert metrics.ramachandran_allowed(atoms).allowed == level


def test_jensen_shannon_by_hand():
    assert metrics.jensen_shannon(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])) == 0
    assert metrics.jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])) == 1
    # H(3/4, 1/4) - (0 + 1) / 2 = .8113 - .5
    found = metrics.jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    assert found == pytest.approx(0.3113, abs=1e-4)


def test_contacts_are_told_by_separation(traces, helix):
    distance = geometry.distances(traces)
    assert metrics.contact_js(distance, distance) == 0
    probability = geometry.contact_probability(geometry.distances(helix))[0]
    assert probability[3] == 1 and probability[4] == 1 and probability[8] == 0
    stretched = geometry.distances(straight(*[3.8] * 47)).repeat(2, 1, 1)
    stretched[:, 0, 40] = stretched[:, 40, 0] = 5  # the only contact
    assert metrics.contact_js(distance, stretched) > 0.5
    assert metrics.contact_count(stretched) == pytest.approx(2 / 48)


def test_nearest_finds_the_copy_and_diversity_is_nothing_among_copies(traces):
    found = metrics.nearest(turned(traces[[4, 1]]), traces)
    assert found.row.tolist() == [4, 1] and torch.all(found.rmsd < 1e-2)
    assert metrics.diversity(traces[:1].repeat(3, 1, 1)) < 1e-2
    by_hand = geometry.rmsd(traces[:1], traces[1:2]).item()
    assert metrics.diversity(traces[:2]) == pytest.approx(by_hand, abs=1e-3)
    assert metrics.radius_ratio(traces) == pytest.approx(
        (geometry.radius_of_gyration(traces).mean() / (2.2 * 48**0.38)).item()
    )
