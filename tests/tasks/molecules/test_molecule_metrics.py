"""Molecules read off atoms in space: bonds, validity, rewards, pictures; the shipped models."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from difftilt.chains.rollouts import rollout
from difftilt.errors import CheckpointError, InputError
from difftilt.kernels.networks import full_copy
from difftilt.models.egnn import AtomNetworkSize, present_atoms
from difftilt.noise import GeneratorNoise
from difftilt.tasks.molecules import models
from difftilt.tasks.molecules.chemistry import KINDS, VALENCES, bond_orders, molecule_of
from difftilt.tasks.molecules.drawing import drawn
from difftilt.tasks.molecules.metrics import (
    consistency,
    fingerprint,
    molecules_of,
    quality,
    score,
    smiles_of,
)
from difftilt.tasks.molecules.models import (
    MOST_ATOMS,
    encoded,
    load_regressor,
    molecule_prior,
    read_kinds,
    seen_molecules,
)
from difftilt.tasks.molecules.rewards import PropertyReward, ScoreReward, SubstructureReward
from difftilt.tasks.molecules.values import AtomValue

chem = pytest.importorskip("rdkit.Chem")
embedding = pytest.importorskip("rdkit.Chem.AllChem")

SMILES = (
    "CCO",
    "c1ccccc1",
    "CC#N",
    "CC(=O)N",
    "C1CC1C=O",
    "OCC(F)F",
    "c1cc[nH]c1",
    "C1COCCN1",
    "CC(C)(C)C#C",
    "O=C1CCCO1",
    "N#CC(O)C1CCC1",
    "CN1C=CN=C1",
)


def at_rest(smiles: str) -> tuple[np.ndarray, np.ndarray]:
    """Places and kinds of a molecule's heavy atoms where a force field wants them."""
    whole = chem.AddHs(chem.MolFromSmiles(smiles))
    assert embedding.EmbedMolecule(whole, randomSeed=7) == 0
    embedding.MMFFOptimizeMolecule(whole)
    heavy = [atom for atom in whole.GetAtoms() if atom.GetAtomicNum() > 1]
    known = {(kind.element, kind.hydrogens): index for index, kind in enumerate(KINDS)}
    kinds = [known[a.GetSymbol(), a.GetTotalNumHs(includeNeighbors=True)] for a in heavy]
    places = whole.GetConformer().GetPositions()[[a.GetIdx() for a in heavy]]
    return places - places.mean(0), np.array(kinds)


def state_of(smiles: str) -> Tensor:
    """A state (1, 9, 13)."""
    places, kinds = at_rest(smiles)
    room = MOST_ATOMS - len(kinds)
    padded = torch.from_numpy(np.pad(places, ((0, room), (0, 0)))).float()
    return encoded(
        padded[None], torch.from_numpy(np.pad(kinds, (0, room), constant_values=-1))[None]
    )


@pytest.fixture(scope="module")
def states() -> Tensor:
    return torch.cat([state_of(smiles) for smiles in SMILES])


def test_kinds_are_the_atoms_that_have_a_bond_to_another():
    assert [str(kind) for kind in KINDS] == [
        "C",
        "CH",
        "CH2",
        "CH3",
        "N",
        "NH",
        "NH2",
        "O",
        "OH",
        "F",
    ]
    assert all(kind.hydrogens < VALENCES[kind.element] for kind in KINDS)


def test_molecules_are_found_again_from_their_atoms(states):
    expected = [chem.MolToSmiles(chem.MolFromSmiles(smiles)) for smiles in SMILES]
    assert smiles_of(molecules_of(states)) == expected


def test_neither_order_nor_orientation_matters(states):
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    turned = torch.cat(
        [states[..., :3] @ turn + 3 * (states[..., 3:].sum(-1, keepdim=True)), states[..., 3:]], -1
    )
    order = torch.randperm(MOST_ATOMS, generator=generator)
    expected = smiles_of(molecules_of(states))
    assert smiles_of(molecules_of(turned[:, order])) == expected
    regressor = load_regressor()
    plain, other = (regressor(x, read_kinds(x) >= 0) for x in (states, turned[:, order]))
    assert torch.allclose(plain, other, rtol=1e-4, atol=1e-3)


def test_what_is_in_pieces_or_has_a_wrong_valence_is_no_molecule(unchecked):
    places, kinds = at_rest("CCO")
    assert molecule_of(places, kinds) is not None
    assert molecule_of(places + np.array([[0, 0, 0], [0, 0, 0], [9, 9, 9]]), kinds) is None
    carbonyl = np.array([kinds[0], kinds[1], [str(k) for k in KINDS].index("O")])
    assert molecule_of(places, carbonyl, consistent=True) is None
    assert chem.MolToSmiles(molecule_of(places, carbonyl)) == "CCO"
    crowded, others = at_rest("CC(C)(C)C#C")
    assert molecule_of(0.2 * crowded, others) is None
    with pytest.raises(InputError, match="a kind for each place"):
        molecule_of(places, kinds[:2])


def test_bond_orders_are_those_of_an_enumeration(unchecked):
    """All graphs of four atoms with up to three bonds, all sums up to 4: shortest by the fewest."""
    every = list(combinations(range(4), 2))
    for count in (1, 2, 3):
        for pairs in combinations(every, count):
            reached = []
            for orders in product((1, 2, 3), repeat=count):
                sums = [0] * 4
                for (i, j), order in zip(pairs, orders, strict=True):
                    sums[i] += order
                    sums[j] += order
                reached.append(sums)
            least = [sum(k in pair for pair in pairs) for k in range(4)]
            for wanted in product(*(range(low, 5) for low in least)):
                short = [
                    sum(wanted) - sum(sums)
                    for sums in reached
                    if all(s <= w for s, w in zip(sums, wanted, strict=True))
                ]
                orders, found = bond_orders(pairs, wanted)
                assert found == min(short)
                assert found == sum(wanted) - 2 * sum(orders)


def test_shorter_bonds_get_the_higher_order():
    """A ring of four with two double bonds to place: the first pair takes one."""
    ring = [(0, 1), (1, 2), (2, 3), (0, 3)]
    assert bond_orders(ring, [3, 3, 3, 3]) == ([2, 1, 2, 1], 0)
    assert bond_orders(ring[1:] + ring[:1], [3, 3, 3, 3]) == ([2, 1, 2, 1], 0)
    assert bond_orders(ring, [3, 3, 3, 2]) == ([2, 1, 1, 1], 1)


def test_quality_counts_what_it_says(states):
    assert consistency(states) == 1
    broken = states[:1] * torch.tensor([5.0] * 3 + [1.0] * len(KINDS))
    found = quality(molecules_of(torch.cat([states[:3], states[:1], broken])))
    assert found["valid"] == pytest.approx(0.8)
    assert found["unique"] == pytest.approx(0.75)
    assert found["new"] in {0.0, 1 / 3, 2 / 3, 1.0}
    assert quality([None, None]) == {"valid": 0.0, "unique": 0.0, "new": 0.0}
    with pytest.raises(InputError, match="at least one"):
        quality([])


def test_the_list_of_seen_molecules_knows_them():
    prints = seen_molecules()
    assert len(prints) > 60_000
    assert bool((prints[1:] > prints[:-1]).all())
    common = ["CCO", "C1CC1", "CC(C)=O", "CCCO", "CC(C)C", "CCC#N", "CCOC", "C1CCC1", "CCF"]
    known = np.isin([fingerprint(s) for s in common], prints).sum()
    assert 0 < known <= len(common)
    assert not np.isin([fingerprint("Brc1ccccc1")], prints).any()


def test_scores_are_rdkits_and_wanted_values_have_log_reward_zero(states, unchecked):
    from rdkit.Chem import QED

    molecule = chem.MolFromSmiles("c1ccccc1")
    assert score("qed")(molecule) == pytest.approx(QED.qed(molecule))
    assert 1 <= score("sa")(molecule) < score("sa")(chem.MolFromSmiles("CN1C2C3C4C1C4C23")) <= 10
    benzene = score("logp")(molecule)
    broken = states[:1] * torch.tensor([5.0] * 3 + [1.0] * len(KINDS))
    reward = ScoreReward("logp", benzene, 0.5)
    log_r = reward(torch.cat([states[1:2], states[:1], broken]))
    assert log_r[0] == pytest.approx(0, abs=1e-6)
    assert -10 < log_r[1] < 0
    assert log_r[2] == -10
    with pytest.raises(InputError, match="qed, logp, sa"):
        ScoreReward("weight", 1.0, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="above 0"):
        ScoreReward("qed", 1.0, 0.0)


def test_a_substructure_is_rewarded_where_it_is(states):
    reward = SubstructureReward("C#N", without=-3.0)
    found = reward(states)
    assert [s for s, r in zip(SMILES, found.tolist(), strict=True) if r == 0] == [
        "CC#N",
        SMILES[10],
    ]
    assert set(found.tolist()) == {0.0, -3.0}
    with pytest.raises(InputError, match="cannot read"):
        SubstructureReward("((")


def test_a_property_reward_is_a_black_box_with_a_slope(states, unchecked):
    reward = PropertyReward("alpha", 60.0, 5.0)
    value = reward.values(states)
    plain = reward(states)
    expected = (-0.5 * ((value - 60) / 5) ** 2).clamp(min=-10)
    assert torch.allclose(plain, expected, atol=1e-5)
    broken = states * torch.tensor([5.0] * 3 + [1.0] * len(KINDS))
    assert bool((reward(broken) == -10).all())
    assert bool((PropertyReward("alpha", 60.0, 5.0, valid=False)(broken) >= -10).all())
    followed = states.clone().requires_grad_(True)
    log_r = reward(followed)
    assert torch.equal(log_r.detach(), plain)
    (slope,) = torch.autograd.grad(log_r.sum(), followed)
    step = torch.zeros_like(states)
    step[0, 1, 2] = 1e-2
    up, down = (-0.5 * ((reward.values(states + s)[0] - 60) / 5) ** 2 for s in (step, -step))
    assert float(slope[0, 1, 2]) == pytest.approx(float(up - down) / 2e-2, rel=0.05, abs=2e-3)
    wanted = torch.tensor([[9.0, 60.0]]).repeat(len(states), 1)
    assert torch.allclose(PropertyReward("alpha", None, 5.0)(states, wanted), plain)
    for bad, match in (
        (lambda: PropertyReward("weight", 1.0, 1.0), "the regressor knows"),  # pyright: ignore[reportArgumentType]
        (lambda: PropertyReward("alpha", 1.0, -1.0), "above 0"),
        (lambda: PropertyReward("alpha", None, 1.0)(states), "needs a condition"),
    ):
        with pytest.raises(InputError, match=match):
            bad()


def test_polarisability_grows_with_the_molecule(states):
    """The largest of these have a larger one than the smallest; a benzene ring beats ethanol."""
    alpha = PropertyReward("alpha", 60.0, 5.0).values(states)
    atoms = (read_kinds(states) >= 0).sum(1)
    assert alpha[atoms == atoms.max()].min() > alpha[atoms == 3].max()
    assert alpha[1] > alpha[0]


def test_pictures_are_bytes_and_an_empty_one_is_pale(states):
    pytest.importorskip("PIL.Image")
    made = drawn([*molecules_of(states[:2]), None], ["a", "b", "c"], 80)
    assert made.shape == (3, 3, 80, 80)
    assert made.dtype == torch.uint8
    dark = (made < 128).flatten(1).sum(1)
    assert dark[0] > 50
    assert dark[1] > 50
    assert dark[2] == 0


def test_the_prior_makes_molecules_of_any_number_of_atoms():
    chain = molecule_prior(6)
    counts = torch.tensor([9, 7, 2, 5])
    x = rollout(chain.given(counts), 4, GeneratorNoise(torch.Generator().manual_seed(0))).x_0
    assert torch.equal((read_kinds(x) >= 0).sum(1), counts)
    kernel = full_copy(chain)
    path = rollout(chain.tilted(kernel), 3, GeneratorNoise(torch.Generator().manual_seed(1)))
    assert path.log_ratio is not None
    assert float(path.log_ratio.abs().max()) == 0


def test_a_missing_file_of_weights_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "shipped_folder", lambda name: tmp_path)
    with pytest.raises(CheckpointError, match=r"prior\.safetensors"):
        molecule_prior()
    with pytest.raises(CheckpointError, match=r"regressor\.safetensors"):
        load_regressor()


def test_a_value_is_invariant_and_its_slope_moves_no_centre():
    torch.manual_seed(0)
    value = AtomValue((MOST_ATOMS, 13), 10, AtomNetworkSize(width=16, layers=2))
    torch.nn.init.normal_(value.last.weight)
    counts = torch.tensor([9, 4, 6])
    present = present_atoms(counts, MOST_ATOMS)[..., None]
    x, prediction = (torch.randn(3, MOST_ATOMS, 13) * present for _ in range(2))
    prediction.requires_grad_(True)
    plain = value(x, 4, prediction, counts)
    (slope,) = torch.autograd.grad(plain.sum(), prediction)
    assert float(slope[..., :3].sum(1).abs().max()) < 1e-5
    assert float(slope[~present[..., 0]].abs().max()) == 0
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    turned = torch.cat([prediction[..., :3] @ turn + 1, prediction[..., 3:]], -1) * present
    assert torch.allclose(value(x, 4, turned, counts), plain, atol=1e-5)
