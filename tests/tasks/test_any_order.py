"""The any-order bound against enumeration of all masks and all orders of a tiny model."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from difftilt.errors import InputError
from difftilt.tasks.any_order import (
    any_order_terms,
    drawn_masks,
    elbo,
    masked_log_likelihood,
    stratified,
)

VOCABULARY, LENGTH, MASK = 7, 6, 0
OPEN = (1, 2, 4, 5)


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LENGTH,
        initializer_range=0.5,
    )
    return transformers.BertForMaskedLM(config).eval().requires_grad_(False)


@pytest.fixture
def ids() -> Tensor:
    return torch.tensor([[3, 1, 6, 2, 2, 5]])


def opened() -> Tensor:
    return torch.tensor([[i in OPEN for i in range(LENGTH)]])


def token_log_prob(model, ids: Tensor, masked: tuple[int, ...], position: int) -> float:
    """One token's log-probability from the model's own logits."""
    seen = ids.clone()
    seen[0, list(masked)] = MASK
    logits = model(input_ids=seen).logits[0, position]
    logits[MASK] = -math.inf
    return float(logits.log_softmax(0)[ids[0, position]])


def of_orders(model, ids: Tensor) -> list[float]:
    """log p of the open tokens in each of the 24 orders of revealing them."""
    totals = []
    for order in itertools.permutations(OPEN):
        hidden, total = list(order), 0.0
        for position in order:
            total += token_log_prob(model, ids, tuple(hidden), position)
            hidden.remove(position)
        totals.append(total)
    return totals


def exact_bound(model, ids: Tensor) -> float:
    """E_k E_S (n / k) Σ log p over all subsets S."""
    count, total = len(OPEN), 0.0
    for k in range(1, count + 1):
        subsets = list(itertools.combinations(OPEN, k))
        for chosen in subsets:
            part = sum(token_log_prob(model, ids, chosen, i) for i in chosen)
            total += count / k * part / len(subsets) / count
    return total


def test_likelihood_of_masked_tokens_is_the_sum_of_the_model_s_own(model, ids):
    masks = torch.tensor([[i in (1, 4) for i in range(LENGTH)]])
    expected = sum(token_log_prob(model, ids, (1, 4), i) for i in (1, 4))
    assert masked_log_likelihood(model, ids, masks, MASK).item() == pytest.approx(
        expected, abs=1e-5
    )


def test_bound_is_the_mean_over_orders_and_lies_below_their_mixture(model, ids):
    orders, bound = of_orders(model, ids), exact_bound(model, ids)
    assert bound == pytest.approx(sum(orders) / len(orders), abs=1e-5)
    mixture = math.log(sum(math.exp(value) for value in orders) / len(orders))
    assert bound < mixture - 1e-4


def test_draws_are_unbiased(model, ids, generator):
    """4,000 draws, 5 standard errors: a false alarm in 2 million."""
    copies = 4000
    terms = any_order_terms(
        model, ids.expand(copies, -1), opened().expand(copies, -1), MASK, generator
    )
    error = terms.std().item() / math.sqrt(copies)
    assert abs(terms.mean().item() - exact_bound(model, ids)) < 5 * error


def test_elbo_stratifies_each_sequence(model, ids, generator):
    """Each k comes as often, so that the figure is nearer than independent draws would be."""
    exact = exact_bound(model, ids)
    two = torch.cat([ids, ids])
    found = elbo(model, two, opened().expand(2, -1), MASK, draws=400, generator=generator)
    assert found.shape == (2,)
    assert found.sub(exact).abs().max().item() < 0.25


def test_masks_have_the_asked_size_and_stay_on_open_positions(generator):
    uniforms = torch.tensor([0.0, 0.3, 0.6, 0.999])
    masks = drawn_masks(opened().expand(4, -1), uniforms, generator)
    assert masks.sum(1).tolist() == [1, 2, 3, 4]
    assert not masks[:, [0, 3]].any()


def test_stratified_uniforms_fill_every_cell(generator):
    cells = (stratified(50, generator) * 50).long()
    assert sorted(cells.tolist()) == list(range(50))


def test_refuses_nothing_to_predict_and_no_draws(model, ids):
    with pytest.raises(InputError, match="no open position"):
        elbo(model, ids, torch.zeros_like(opened()), MASK)
    with pytest.raises(InputError, match="draws=0"):
        elbo(model, ids, opened(), MASK, draws=0)
