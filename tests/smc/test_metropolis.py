"""Independence Metropolis-Hastings against the exact law of its chain on three points."""

import math

import pytest
import torch

from difftilt.errors import InputError
from difftilt.smc.metropolis import independence_metropolis

Q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
TARGET = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
LOG_W = (TARGET / Q).log()


def exact_law(steps: int) -> tuple[torch.Tensor, float]:
    """Law of the chain after ``steps`` proposals, and the mean acceptance on the way."""
    accept = (LOG_W[None, :] - LOG_W[:, None]).clamp(max=0).exp()
    move = Q[None, :] * accept
    move = move - torch.diag(torch.diag(move)) + torch.diag(1 - move.sum(1) + torch.diag(move))
    law, accepted = Q.clone(), 0.0
    for _ in range(steps - 1):
        accepted += (law @ accept @ Q).item()
        law = law @ move
    return law, accepted / max(1, steps - 1)


@pytest.mark.parametrize("steps", [1, 2, 4, 30])
def test_the_end_of_the_chains_has_the_exact_law(steps: int, generator):
    """20,000 chains, 5 standard errors; after 30 steps the law is the target's."""
    chains = 20_000
    points = torch.multinomial(Q, steps * chains, True, generator=generator).reshape(steps, chains)
    indices, acceptance = independence_metropolis(LOG_W[points], generator)
    final = points[indices, torch.arange(chains)]
    law, accepted = exact_law(steps)
    share = torch.bincount(final, minlength=3) / chains
    assert bool(((share - law).abs() < 5 * (law * (1 - law) / chains).sqrt()).all())
    if steps > 1:
        assert acceptance == pytest.approx(accepted, abs=5 * 0.5 / math.sqrt(chains))
    if steps == 30:
        assert bool(((law - TARGET).abs() < 1e-3).all())


def test_distance_falls_at_least_at_the_stated_rate():
    """TV after k moves ≤ (1 - 1 / max w)^k, w normalised (Mengersen and Tweedie)."""
    rate = 1 - 1 / LOG_W.exp().max().item()
    start = 0.5 * (Q - TARGET).abs().sum().item()
    for k in range(1, 8):
        distance = 0.5 * (exact_law(k + 1)[0] - TARGET).abs().sum().item()
        assert distance <= rate**k * start + 1e-12


def test_equal_weights_accept_all_and_the_last_proposal_stays(generator):
    indices, acceptance = independence_metropolis(torch.full((5, 7), -3.0), generator)
    assert indices.tolist() == [4] * 7
    assert acceptance == 1.0


def test_zero_weights_are_left_and_never_entered(generator):
    log_w = torch.tensor([[-math.inf, 0.0], [0.0, -math.inf], [-math.inf, -math.inf]])
    assert independence_metropolis(log_w, generator)[0].tolist() == [1, 0]


def test_a_single_step_returns_the_proposals():
    indices, acceptance = independence_metropolis(torch.zeros(1, 4))
    assert indices.tolist() == [0, 0, 0, 0]
    assert math.isnan(acceptance)


def test_bad_weights_are_refused():
    with pytest.raises(InputError, match="1 of 2 chains"):
        independence_metropolis(torch.tensor([[0.0, -math.inf], [0.0, -math.inf]]))
    with pytest.raises(InputError, match="NaN"):
        independence_metropolis(torch.tensor([[math.nan]]))
    with pytest.raises(InputError, match="both ≥ 1"):
        independence_metropolis(torch.zeros(0, 4))
