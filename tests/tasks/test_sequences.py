"""Sequences with two controls: the law of DNA, peptides, SELFIES, and the prior's network."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.errors import CheckpointError, InputError
from difftilt.marginals import words
from difftilt.tasks.sequences import dna, molecules, peptides
from difftilt.tasks.sequences.counts import counts, placed
from difftilt.tasks.sequences.network import CONTROLS, SequenceNetwork
from difftilt.tasks.sequences.sets import SIZES, sequence_set
from difftilt.tasks.shipped import filled, shipped_folder


def of_bases(letters: str) -> torch.Tensor:
    return torch.tensor([[dna.BASES.index(base) for base in letters]])


def test_an_activity_is_of_the_best_match():
    activity = dna.Activity("GATA", slope=2.0, threshold=3.0)
    for letters, matches in (("CGATAC", 4), ("CGATCC", 3), ("GGGGGG", 1), ("TTGATA", 4)):
        wanted = torch.sigmoid(torch.tensor(2.0 * (matches - 3.0)))
        assert torch.allclose(activity(of_bases(letters)), wanted)


def test_drawn_dna_has_the_law_of_its_markov_chain():
    n = 40_000
    x = dna.drawn_dna(n, torch.Generator().manual_seed(0))
    first = torch.bincount(x[:, 0], minlength=4) / n
    pairs = torch.bincount(4 * x[:, 2] + x[:, 3], minlength=16).reshape(4, 4).double()
    expected = torch.tensor(dna.NEXT).double() * pairs.sum(1, keepdim=True)
    # Five standard errors: a false alarm in some 1 of 100,000 runs.
    assert bool((first - torch.tensor(dna.FIRST)).abs().max() < 5 * 0.5 / n**0.5)
    assert bool(((pairs - expected).abs() < 5 * expected.sqrt()).all())


def test_counts_are_those_of_the_letters():
    ids = of_bases("GATGAT")
    found = counts(ids, 4)[0]
    assert found[:4].tolist() == [2, 0, 2, 2]
    pairs = ["GATGAT"[i : i + 2] for i in range(5)]
    for a in range(4):
        for b in range(4):
            assert found[4 + 4 * a + b] == pairs.count(dna.BASES[a] + dna.BASES[b])
    assert torch.equal(placed(ids, 4).reshape(6, 4).argmax(1), ids[0])


@given(st.lists(st.text(peptides.AMINO_ACIDS, max_size=peptides.LENGTH), max_size=5))
def test_peptides_are_read_as_they_were_written(sequences: list[str]):
    assert peptides.decoded(peptides.encoded(sequences)) == sequences


def test_hydropathy_is_the_mean_of_the_scale():
    ids = peptides.encoded(["IIR", "G", ""])
    assert torch.allclose(peptides.hydropathy(ids), torch.tensor([1.5, -0.4, 0.0]))
    with pytest.raises(InputError, match="leave it out"):
        peptides.encoded(["AXA"])


@torch.no_grad()
def test_the_network_starts_blind_to_labels_and_can_learn_them():
    torch.manual_seed(0)
    network = SequenceNetwork(4, 3)
    tokens = torch.tensor([[0, 4, 2]])
    seen = [torch.cat([tokens, torch.tensor([y])], 1) for y in ((4, 4), (0, 1), (1, 1))]
    blind, *others = (network.hidden(ids) for ids in seen)
    assert blind.shape[1] == 3 + CONTROLS
    assert all(torch.equal(each, blind) for each in others)
    torch.nn.init.normal_(network.labels.weight)
    blind, *others = (network.hidden(ids)[:, :3] for ids in seen)
    assert torch.allclose(blind, network.network.hidden(tokens))
    assert all(float((each - blind).abs().max()) > 1e-3 for each in others)


def test_a_missing_prior_is_said(tmp_path):
    size = SIZES["dna"][1]
    with pytest.raises(CheckpointError, match="train_it"):
        filled(SequenceNetwork(4, 6, size), tmp_path / "none.safetensors", "train_it.py")
    with pytest.raises(CheckpointError, match="cannot be used"):
        filled(SequenceNetwork(5, 6, size), shipped_folder("sequences") / "dna.safetensors", "it")


def test_no_sample_carries_both_labels():
    """The two sets of pairs of real sequences, and the judge's, have no sequence in common."""
    for name in ("peptides", "selfies"):
        found = sequence_set(name)
        sets = [{tuple(row) for row in x.tolist()} for x, _ in found.pairs]
        assert not sets[0] & sets[1]
    with np.load(shipped_folder("sequences") / "peptides.npz") as opened:
        judge = {tuple(row) for row in opened["judge_x"].tolist()}
    pairs = sequence_set("peptides").pairs
    assert not judge & {tuple(row) for x, _ in pairs for row in x.tolist()}


@pytest.mark.parametrize("name", ["dna", "peptides", "selfies"])
def test_each_control_predicts_its_label(name):
    """Samples with the label, drawn by the judge, get a higher probability, by five standard
    errors, on sequences that the control has not seen.
    """
    found = sequence_set(name)
    for k, ((x, _), classifier) in enumerate(
        zip(reversed(found.pairs), found.classifiers(), strict=True)
    ):
        y = found.judge(x[:1500])[:, k]
        p = classifier(x[:1500]).softmax(1)[:, 1]
        has = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < y
        error = (p[has].var() / has.sum() + p[~has].var() / (~has).sum()).sqrt()
        assert float((p[has].mean() - p[~has].mean()) / error) > 5


def test_dna_reads_the_whole_vocabulary():
    assert len(words(len(dna.BASES), dna.LENGTH)) == 4**6
    assert sequence_set("dna").written(of_bases("CGATAC")) == ["CGATAC"]


@pytest.mark.parametrize("smiles", ["CC(=O)C1CC1", "N#CC1CCOC1", "CCO", "FC(F)(F)C=O"])
def test_molecules_are_read_as_they_were_written(smiles: str):
    ids = molecules.encoded_smiles(smiles)
    assert ids is not None
    assert molecules.decoded_smiles(torch.tensor([ids])) == [molecules.canonical(smiles)]


def test_every_selfies_is_a_molecule():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 1 + len(molecules.TOKENS), (200, molecules.LENGTH), generator=generator)
    ids[:, 0] = 1  # begins with carbon: branches and rings alone say nothing
    assert all(molecules.decoded_smiles(ids))
    assert molecules.decoded_smiles(torch.zeros(1, molecules.LENGTH, dtype=torch.long)) == [""]


def test_rewards_of_molecules():
    ids = torch.tensor([molecules.encoded_smiles(s) for s in ("CC(C)=O", "CCCCCC")])
    assert molecules.controls(ids).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert molecules.part_reward(without=-3.0)(ids).tolist() == [0.0, -3.0]
    logp = [molecules.molecule_property("logp", s) for s in ("CC(C)=O", "CCCCCC")]
    wanted = [-0.5 * ((each - 1.0) / 0.5) ** 2 for each in logp]
    assert molecules.property_reward("logp", 1.0, 0.5)(ids).tolist() == pytest.approx(wanted)
    assert 1 <= molecules.molecule_property("sa", "CCO") <= 10
    assert 0 <= molecules.molecule_property("qed", "CCO") <= 1
    with pytest.raises(InputError, match="width"):
        molecules.property_reward("logp", 1.0, 0.0)
    with pytest.raises(InputError, match="SMARTS"):
        molecules.has_part("not smarts(", "CCO")
    with pytest.raises(InputError, match="not the SMILES"):
        molecules.molecule_property("qed", "C(")


def test_shares_of_molecules():
    known = molecules.fingerprints(["CCO"])
    found = molecules.molecule_shares(["CCO", "CCO", "CCC", ""], known)
    assert found == {"validity": 0.75, "uniqueness": pytest.approx(2 / 3), "novelty": 0.5}
