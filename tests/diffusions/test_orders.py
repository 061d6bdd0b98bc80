"""The law of every order drawn at the start, against its enumeration, on canvases with gaps.

Frequencies are compared by their total variation; false-alarm rates are under 1e-20 (McDiarmid: the
bound is 2 means above the mean).
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from difftilt.diffusions.orders import AnyOrder, Blocks, LeftToRight, Order, Parallel, Stepwise
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise, StreamNoise

DRAWS = 20_000
GAPS = (1, 1, 0, 1, 1)
"""Which positions are generated."""


def uniform(ranks: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    law: dict[tuple[int, ...], float] = {}
    for rank in ranks:
        law[rank] = law.get(rank, 0.0) + 1 / len(ranks)
    return law


def one_by_one(size: int) -> list[tuple[int, ...]]:
    """Ranks of four positions, any order within blocks of a size, the leftmost block first."""
    permutations = itertools.permutations(range(4, 0, -1))
    return [r for r in permutations if all((4 - v) // size == i // size for i, v in enumerate(r))]


PAIRS = [r for r in itertools.product((1, 2), repeat=4) if sum(r) == 6]

LAWS: dict[str, tuple[Order, dict[tuple[int, ...], float]]] = {
    "any": (AnyOrder(), uniform(one_by_one(4))),
    "any, stepwise": (Stepwise(), uniform(one_by_one(4))),
    "any, in pairs": (AnyOrder(2), uniform(PAIRS)),
    "left to right": (LeftToRight(), {(4, 3, 2, 1): 1.0}),
    "left to right, in threes": (LeftToRight(3), {(2, 1, 1, 1): 1.0}),
    "blocks": (Blocks(size=2), uniform(one_by_one(2))),
    "blocks of three": (Blocks(size=3), uniform(one_by_one(3))),
    "aligned blocks": (Blocks(size=2, aligned=True), uniform([(4, 3, 2, 1), (3, 4, 2, 1)])),
    "aligned blocks of three": (Blocks(size=3, aligned=True), uniform(one_by_one(2))),
    "parallel": (Parallel(3), uniform(list(itertools.product((1, 2, 3), repeat=4)))),
}


def drawn(order: Order, gaps: tuple[int, ...], draws: int = DRAWS) -> Tensor:
    generated = torch.tensor(gaps, dtype=torch.bool).expand(draws, -1)
    return order.ranks(generated, GeneratorNoise(torch.Generator().manual_seed(1)))[:, generated[0]]


@pytest.mark.parametrize("name", LAWS)
def test_ranks_have_their_law(name: str):
    order, law = LAWS[name]
    found = drawn(order, GAPS)
    seen = {tuple(r): 0 for r in law}
    values, counts = torch.unique(found, dim=0, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        assert tuple(value) in law
        seen[tuple(value)] = count
    distance = sum(abs(seen[r] / DRAWS - law[r]) for r in law) / 2
    assert distance < 1.5 * math.sqrt(len(law) / DRAWS)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("gaps", [GAPS, (0, 0, 1, 0, 0), (1, 1, 1, 1, 1)])
def test_every_step_has_its_number_of_positions(name: str, gaps: tuple[int, ...]):
    order, generated = LAWS[name][0], sum(gaps)
    ranks = drawn(order, gaps, 200)
    steps, width = order.steps(generated), order.at_once(generated)
    assert int(ranks.min()) >= 1 and int(ranks.max()) <= steps
    counts = torch.stack([(ranks == n).sum(1) for n in range(1, steps + 1)])
    assert bool((counts <= width).all())
    if not isinstance(order, Parallel):
        # Only the first step, which comes first in sampling, may have fewer than the others.
        assert torch.equal(counts[:-1], torch.full_like(counts[:-1], width))
        assert bool((counts[-1] >= 1).all())


@pytest.mark.parametrize("name", LAWS)
def test_ranks_do_not_depend_on_the_batch(name: str):
    order = LAWS[name][0]
    generated = torch.tensor(GAPS, dtype=torch.bool)
    many = order.ranks(generated.expand(6, -1), StreamNoise(1, range(6)))
    few = order.ranks(generated.expand(2, -1), StreamNoise(1, (1, 4)))
    assert torch.equal(few, many[[1, 4]])


@pytest.mark.parametrize("order", [AnyOrder, LeftToRight, Blocks])
def test_a_step_reveals_at_least_one_position(order: type):
    with pytest.raises(InputError, match="tokens_per_step must be at least 1"):
        order(0)


def test_a_block_has_a_position():
    with pytest.raises(InputError, match="size must be at least 1 position per block, got 0"):
        Blocks(size=0)
