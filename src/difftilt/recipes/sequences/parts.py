"""Sequences with two controls: the target, and how a sampler of every pair of labels is judged.

    pairs (x, y_1) and, apart, pairs (x, y_2)  ->  two calibrated classifiers
    ->  log r(x, y) = γ (log p̂_1(y_1 | x) + log p̂_2(y_2 | x))  ->  one posterior, amortised over y

The labels stand behind the sequence in the canvas, shown to the posterior alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.diagnostics.closeness import rejection_indices
from difftilt.diagnostics.distances import energy_distance
from difftilt.diffusions.masked import GENERATED, SUFFIX, MaskedDiffusion, canvas
from difftilt.posteriors import Prior
from difftilt.rewards.contract import CheckedReward
from difftilt.rewards.controls import ControlReward
from difftilt.sampling.draws import sample
from difftilt.smc.resampling import systematic
from difftilt.tasks.exact.controls import PAIRS
from difftilt.tasks.sequences.counts import counts
from difftilt.tasks.sequences.molecules import Property, part_reward, property_reward
from difftilt.tasks.sequences.network import CLASSES, CONTROLS
from difftilt.tasks.sequences.sets import SequenceSet
from difftilt.tasks.tokens.laws import exact_law, total_variation
from difftilt.tasks.tokens.problems import posterior_law
from difftilt.token_denoisers import TokenDenoiser


def sequence_prior(found: SequenceSet, name: str) -> Prior:
    """The set's masked model, one position revealed at a time in any order."""
    diffusion = MaskedDiffusion(found.vocab_size, found.length)
    chain = Chain(TokenDenoiser(found.network), diffusion, (found.length + CONTROLS,))
    return Prior(chain, source=f"shipped {name}")


def control_canvases(length: int, labels: Int[Tensor, "n K"]) -> Int[Tensor, "n 2 L"]:
    """Conditions of the chain: ``length`` tokens to generate, then labels for the posterior."""
    tokens = torch.cat([torch.zeros(len(labels), length, dtype=torch.long), labels], 1)
    roles = torch.tensor([GENERATED] * length + [SUFFIX] * labels.shape[1])
    return canvas(tokens, roles.expand(tokens.shape))


def every_pair(length: int) -> Int[Tensor, "4 2 L"]:
    """The conditions of all pairs of labels."""
    return control_canvases(length, torch.tensor(PAIRS))


def drawn_pairs(length: int) -> Callable[[int, torch.Generator], Tensor]:
    """Conditions for training, each label uniform."""

    def drawn(count: int, generator: torch.Generator) -> Tensor:
        labels = torch.randint(CLASSES, (count, CONTROLS), generator=generator)
        return control_canvases(length, labels)

    return drawn


def of_sequences(
    log_reward: Callable[[Tensor, Tensor], Tensor], length: int, name: str
) -> CheckedReward:
    """A reward of (sequences, labels), at most 0, as one of a chain's ends and canvases."""

    def of_canvas(x_0: Tensor, condition: Tensor) -> Tensor:
        return log_reward(x_0[:, :length], condition[:, 0, length:])

    return CheckedReward(of_canvas, name=name, bound=0.0)


def controls_reward(found: SequenceSet, strength: float = 1.0, seed: int = 0) -> CheckedReward:
    """``γ Σ_k log p̂_k(y_k | x)`` of classifiers that are fitted here, each to its own pairs.

    Raises:
        InputError: the strength is not positive.
    """
    reward = ControlReward(found.classifiers(seed), [strength] * CONTROLS)
    return of_sequences(reward, found.length, "two controls")


@dataclass(frozen=True)
class Wanted:
    """What rdkit is asked of molecules, as a black box.

    Arguments:
        kind: "controls" for the two learned controls; a property; or "part", a substructure.
        value: of the property.
        width: standard deviation that is let pass.
        pattern: of the substructure, SMARTS.
    """

    kind: str = "controls"
    value: float = 0.6
    width: float = 0.05
    pattern: str = "[CX3]=[OX1]"

    def reward(self, found: SequenceSet) -> CheckedReward:
        """The reward of molecules, whatever the labels.

        Raises:
            InputError: an unknown property, or a width that is not positive.
        """
        property_name: Property = self.kind  # pyright: ignore[reportAssignmentType]
        ask = (
            part_reward(self.pattern)
            if self.kind == "part"
            else property_reward(property_name, self.value, self.width)
        )
        return of_sequences(lambda ids, labels: ask(ids), found.length, self.kind)


@dataclass(frozen=True)
class Drawings:
    """Sequences of a sampler.

    Arguments:
        ids: by condition, (n, L) each.
    """

    ids: tuple[Int[Tensor, "_ L"], ...]

    @classmethod
    def in_turn(cls, x_0: Int[Tensor, "n L"], length: int, conditions: int) -> "Drawings":
        """Ends of a chain whose sample i is of condition i, counted round."""
        return cls(tuple(x_0[c::conditions, :length] for c in range(conditions)))


def true_drawings(
    prior: Chain,
    score: Callable[[Tensor, Tensor], Tensor],
    conditions: Int[Tensor, "C 2 L"],
    n: int,
    seed: int,
) -> Drawings:
    """Exact draws of the posterior of each condition: prior draws, accepted with probability r.

    Arguments:
        prior: the prior's chain.
        score: ``β log r`` of ends and conditions, at most 0.
        conditions: the canvases.
        n: prior draws; all conditions share them, since the prior does not see the labels.
        seed: of everything.
    """
    x_0 = sample(prior.given(conditions[:1]), n, seed).x_0
    generator = torch.Generator().manual_seed(seed)
    length = int((conditions[0, 1] == GENERATED).sum())
    kept = []
    for condition in conditions:
        log_r = score(x_0, condition.expand(n, -1, -1))
        kept.append(x_0[rejection_indices(log_r.double(), 0.0, generator), :length])
    return Drawings(tuple(kept))


def resampled(
    prior: Chain,
    score: Callable[[Tensor, Tensor], Tensor],
    conditions: Int[Tensor, "C 2 L"],
    n: int,
    seed: int,
) -> tuple[Int[Tensor, "n L"], Int[Tensor, "n 2 L"]]:
    """Prior draws resampled by r for each condition, and the condition of each.

    What a training may start from: a rare pair of labels has as many rows as any other, of fewer
    different draws. The conditions share the draws, as in ``true_drawings``.

    Arguments:
        prior: the prior's chain.
        score: ``β log r`` of ends and conditions.
        conditions: the canvases.
        n: prior draws, and rows of each condition.
        seed: of everything.
    """
    x_0 = sample(prior.given(conditions[:1]), n, seed).x_0
    generator = torch.Generator().manual_seed(seed)
    ends, asked = [], []
    for condition in conditions:
        each = condition.expand(n, -1, -1)
        drawn = x_0[systematic(score(x_0, each), n, generator)]
        ends.append(torch.where(each[:, 1] == GENERATED, drawn, each[:, 0]))
        asked.append(each)
    return torch.cat(ends), torch.cat(asked)


def judged(
    found: SequenceSet, ids: Int[Tensor, "B L"], labels: Int[Tensor, "B K"]
) -> Float[Tensor, " B"]:
    """The judge's probability that a sequence has both labels."""
    p = found.judge(ids)
    return torch.where(labels == 1, p, 1 - p).prod(1)


def pair_accuracy(found: SequenceSet, drawn: Drawings) -> list[float]:
    """Of each pair of labels, the share of sequences that have both, by the judge."""
    pairs = zip(torch.tensor(PAIRS), drawn.ids, strict=True)
    return [float(judged(found, ids, labels.expand(len(ids), -1)).mean()) for labels, ids in pairs]


def distance(found: SequenceSet, drawn: Drawings, truth: Drawings) -> float:
    """Mean energy distance, over conditions, of the counts of tokens and pairs of tokens."""
    each = [
        energy_distance(counts(a, found.vocab_size), counts(b, found.vocab_size))
        for a, b in zip(drawn.ids, truth.ids, strict=True)
        if min(len(a), len(b)) > 1
    ]
    return sum(each) / max(1, len(each))


def joint_law(
    found: SequenceSet, prior: Chain, conditions: Int[Tensor, "C 2 L"]
) -> Float[Tensor, "C completions"]:
    """``p(x | y_1, y_2)`` of every sequence under the prior's chain and the judge, by summation."""

    def log_p(x: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        return judged(found, x[:, : found.length], x[:, found.length :]).log()

    return posterior_law(prior, log_p, conditions)[0]


def learned_law(
    score: Callable[[Tensor, Tensor], Tensor], prior: Chain, conditions: Int[Tensor, "C 2 L"]
) -> Float[Tensor, "C completions"]:
    """The same under the learned reward: what a perfect sampler would draw."""
    length = int((conditions[0, 1] == GENERATED).sum())

    def log_r(x: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        return score(x, control_canvases(length, x[:, length:]))

    return posterior_law(prior, log_r, conditions)[0]


def chain_distance(
    chain: Chain, conditions: Int[Tensor, "C 2 L"], law: Float[Tensor, "C completions"]
) -> Float[Tensor, " C"]:
    """Total variation of a sampler from a law, of each condition, exact."""
    return total_variation(exact_law(chain, conditions), law)
