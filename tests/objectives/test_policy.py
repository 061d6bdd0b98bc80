"""Policy gradients against enumeration: two binary steps under a known prior and reward."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.base import PathObjective, Scores
from difftilt.objectives.policy import DDPO, DPOK, FlowGRPO, Reinforce, costs_to_go

PATHS = list(itertools.product((0, 1), repeat=2))
PRIOR_FIRST = torch.tensor([0.3, 0.7]).double().log()
PRIOR_LAST = torch.tensor([[0.6, 0.4], [0.2, 0.8]]).double().log()
LOG_R = torch.tensor([[0.5, -1.0], [1.5, 0.2]]).double()


def parameters() -> Tensor:
    """Logits of the first step (row 0) and of the last one after each first state."""
    return torch.tensor([[0.4, -0.3], [0.1, 0.6], [-0.5, 0.9]]).double().requires_grad_()


def laws(logits: Tensor) -> tuple[Tensor, Tensor]:
    log_q = torch.log_softmax(logits, 1)
    return log_q[0], log_q[1:]


def scored(logits: Tensor, batch: list[tuple[int, int]]) -> Scores:
    """Scores of some paths; rows from the last step drawn to the first, and none for x_N."""
    first, last = laws(logits)
    a, b = torch.tensor(batch).unbind(1)
    later, earlier = (last - PRIOR_LAST)[a, b], (first - PRIOR_FIRST)[a]
    steps = torch.stack([later, earlier, torch.zeros_like(later)])
    fall = [((last.exp() * (last - PRIOR_LAST)).sum(1))[a]]
    fall += [
        (first.exp() * (first - PRIOR_FIRST)).sum().expand(len(batch)),
        torch.zeros(len(batch)),
    ]
    drawn = steps.detach()
    return Scores(steps.sum(0), LOG_R[a, b], steps=steps, divergence=torch.stack(fall), drawn=drawn)


def expected_gradient(objective: PathObjective) -> Tensor:
    """Of the mean loss, over every pair of independent paths of the policy."""
    total = torch.zeros(3, 2).double()
    for batch in itertools.product(PATHS, repeat=2):
        logits = parameters()
        first, last = laws(logits.detach())
        weight = torch.stack([first[a] + last[a, b] for a, b in batch]).sum().exp()
        (gradient,) = torch.autograd.grad(
            objective.losses(scored(logits, list(batch))).mean(), logits
        )
        total = total + weight * gradient
    return total


def exact_gradient(cost: Callable[[Scores], Tensor]) -> Tensor:
    """``∇ E_q[cost]`` by enumeration, through the probabilities and the cost."""
    logits = parameters()
    first, last = laws(logits)
    probability = torch.stack([first[a] + last[a, b] for a, b in PATHS]).exp()
    (gradient,) = torch.autograd.grad((probability * cost(scored(logits, PATHS))).sum(), logits)
    return gradient


def reverse_divergence(scores: Scores) -> Tensor:
    return scores.log_ratio - scores.log_r


def test_reinforce_is_the_gradient_of_the_reverse_divergence():
    wanted = exact_gradient(reverse_divergence)
    assert torch.allclose(expected_gradient(Reinforce()), wanted, atol=1e-12)
    same = DDPO(kl=True, normalised=False)
    assert torch.allclose(expected_gradient(same), wanted, atol=1e-12)


def test_ddpo_maximises_the_reward_alone():
    wanted = exact_gradient(lambda scores: -scores.log_r)
    assert torch.allclose(expected_gradient(DDPO(normalised=False)), wanted, atol=1e-12)
    assert not DDPO().consistent and DDPO(kl=True).consistent


def visited_divergences() -> Tensor:
    """``E_q[Σ ∇KL_n]`` at the visited states."""
    logits = parameters()
    first, last = laws(logits)
    visited = first.detach().exp()
    divergence = (first.exp() * (first - PRIOR_FIRST)).sum()
    divergence = divergence + (visited * (last.exp() * (last - PRIOR_LAST)).sum(1)).sum()
    return torch.autograd.grad(divergence, logits)[0]


def test_dpok_adds_the_divergences_at_the_visited_states():
    """``∇ E_q[-log r] + E_q[Σ ∇KL_n]``, which is not the gradient of the reverse divergence."""
    penalty = visited_divergences()
    found = expected_gradient(DPOK())
    assert torch.allclose(found, exact_gradient(lambda s: -s.log_r) + penalty, atol=1e-12)
    assert not torch.allclose(found, exact_gradient(reverse_divergence), atol=1e-3)
    assert not DPOK().consistent


def test_a_group_of_two_compares_signs_and_pays_the_divergence():
    """Of two paths, the advantages are 1 and -1 whatever their rewards: the gradient is that of
    ``-(Q(r' < r) - Q(r' > r))``, the rank of each reward among the policy's own."""
    free, held = (expected_gradient(FlowGRPO(penalty=p)) for p in (0.0, 0.3))
    first, last = laws(parameters().detach())
    probability = (first[:, None] + last).exp()
    rank = torch.stack([(probability * (r - LOG_R).sign()).sum() for r in LOG_R.flatten()]).reshape(
        2, 2
    )

    def cost(scores: Scores) -> Tensor:
        return -torch.stack([rank[a, b] for a, b in PATHS])

    assert torch.allclose(free, exact_gradient(cost), atol=1e-12)
    assert torch.allclose(held - free, 0.3 * visited_divergences(), atol=1e-12)
    assert not FlowGRPO().consistent


def test_groups_are_normalised_each_by_its_own_deviation():
    found = scored(parameters(), [*PATHS, *PATHS])
    rewards = torch.cat([LOG_R.flatten(), 7 * LOG_R.flatten() + 50])
    groups = torch.tensor([0] * 4 + [1] * 4)
    logits = parameters()
    both = scored(logits, [*PATHS, *PATHS])
    many = Scores(found.log_ratio, rewards, group=groups, steps=both.steps, drawn=both.drawn)
    zero = torch.zeros_like(found.steps)
    losses = FlowGRPO(penalty=0.0).losses(replace(many, divergence=zero))
    (second,) = torch.autograd.grad(losses[4:].sum(), logits, retain_graph=True)
    (first,) = torch.autograd.grad(losses[:4].sum(), logits)
    assert torch.allclose(first, second, atol=1e-12) and float(first.abs().max()) > 0.1


@pytest.mark.parametrize("options", [{"clip": 0.0}, {"penalty": -1.0}, {"updates": 0}])
def test_flow_grpo_refuses(options: dict):
    with pytest.raises(InputError, match="clip must be above 0"):
        FlowGRPO(**options)


@pytest.mark.parametrize("kl", [True, False])
def test_the_clipped_ratio_starts_as_the_score_function(kl: bool):
    plain, clipped = (DDPO(c, kl, normalised=False) for c in (None, 0.2))
    assert torch.allclose(expected_gradient(clipped), expected_gradient(plain), atol=1e-12)


def test_the_clipped_ratio_stops_where_the_policy_has_moved_enough():
    batch = [(0, 0), (1, 0), (1, 1)]
    logits = parameters()
    found = scored(logits, batch)
    assert found.steps is not None
    far = found.steps.detach() - 1.0
    moved = Scores(found.log_ratio, found.log_r, steps=found.steps, drawn=far)
    (gradient,) = torch.autograd.grad(DDPO(0.2, normalised=False).losses(moved).sum(), logits)
    # Ratios are e; a gain is clipped, a loss is not.
    advantage = moved.advantages(moved.log_r)
    falls = (advantage < 0).to(advantage)
    again = scored(logits, batch)
    assert again.steps is not None
    surrogate = -(falls * advantage * torch.exp(again.steps - far)).sum()
    (by_hand,) = torch.autograd.grad(surrogate, logits)
    assert torch.allclose(gradient, by_hand, atol=1e-12)


def test_losses_show_the_cost_of_each_path():
    found = scored(parameters(), PATHS)
    for objective in (Reinforce(), DDPO(kl=True), DPOK()):
        assert torch.allclose(objective.losses(found), found.log_ratio - found.log_r)
    assert torch.allclose(DDPO().losses(found), -found.log_r)


def test_normalised_advantages_have_unit_deviation_and_groups_their_own_mean():
    found = scored(parameters(), [*PATHS, *PATHS])
    grouped = Scores(
        found.log_ratio,
        torch.cat([LOG_R.flatten(), LOG_R.flatten() + 50]),
        group=torch.tensor([0] * 4 + [1] * 4),
        steps=found.steps,
    )
    gains = grouped.advantages(grouped.log_r)
    assert torch.allclose(gains[:4], gains[4:]) and float(gains[:4].sum().abs()) < 1e-9
    others = torch.tensor(
        [LOG_R.flatten()[[j for j in range(4) if j != i]].mean() for i in range(4)]
    )
    assert torch.allclose(gains[:4], LOG_R.flatten() - others)


def test_costs_to_go_leave_out_what_was_before():
    found = scored(parameters(), PATHS)
    assert found.steps is not None
    later, earlier, _ = found.steps.detach()
    wanted = torch.stack([later, later + earlier, later + earlier]) - found.log_r
    assert torch.allclose(costs_to_go(found, kl=True), wanted)


def test_bad_options_are_named():
    with pytest.raises(InputError, match="clip must be positive"):
        DDPO(clip=0.0)
    with pytest.raises(InputError, match="more than 1 on the same paths needs clip"):
        DDPO(updates=3)
