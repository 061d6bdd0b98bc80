"""A critic of logged episodes that learns the behaviour's V first, and then ``Q - V`` by itself.

What a policy needs is how actions of one state differ, and where a step is a short moment they
hardly do: Q may differ by a hundred between states and by a tenth of one within. A network of Q
spends itself on the former. Here V is learned from the episodes by TD(λ), and networks of their own
learn ``A(s, a) = E[r + γ V(s') | s, a] - V(s)``, which is of one size everywhere: an error of V
at s' is an error of A, so V comes first and for itself. Chance in a step averages out.

Source: Sutton 1988, TD(λ); Baird 1994, advantage updating.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.signal import lfilter
from torch import Tensor, nn

from difftilt.errors import InputError
from difftilt.tasks.control.critics import Critic, CriticOptions, networks, scale_of_rewards
from difftilt.tasks.control.data import OfflineData
from difftilt.tasks.control.fitting import minimised

ROUNDS = 50
"""How often the λ-returns are made again from the present V."""
CHUNK = 8192


def fit_advantage(data: OfflineData, options: CriticOptions, trace: float = 0.95) -> Critic:
    """V by TD(λ) of the logged episodes, then Q - V; each takes half of the updates.

    Arguments:
        data: logged transitions, episode after episode.
        options: of the learning; ``average`` is not used.
        trace: λ, in [0, 1]: 0 is TD's one step, 1 the episode's return.

    Raises:
        InputError: ``trace`` out of range.
        TrainingError: the loss is not finite.
    """
    check_trace(trace)
    twins, value = networks(data, options)
    scale, discount = scale_of_rewards(data, options), options.discount_of(data)
    rewards, goes_on = scale * data.rewards, (~data.terminations).to(data.rewards)
    fit = options.fit.shortened(2)

    def ahead() -> tuple[Tensor, Tensor]:
        present = _read(value, data.observations)
        following = _read(value, data.next_observations)
        return present, rewards + discount * goes_on * following - present

    def aims() -> Tensor:
        present, differences = ahead()
        return present + discounted_sums(differences, data.lengths, discount * trace)

    wanted = aims()

    def error_of_value(rows: Tensor) -> Tensor:
        return (value(data.observations[rows])[:, 0] - wanted[rows]).square().mean()

    renewed = max(1, fit.updates // ROUNDS)
    for update, _ in enumerate(minimised(error_of_value, [*value.parameters()], len(data), fit)):
        if (update + 1) % renewed == 0:
            wanted = aims()
    gain = ahead()[1]

    def error_of_advantage(rows: Tensor) -> Tensor:
        states, actions = data.observations[rows], data.actions[rows]
        errors = [(twin(states, actions)[:, 0] - gain[rows]).square().mean() for twin in twins]
        return torch.stack(errors).sum()

    for _ in minimised(error_of_advantage, [*twins.parameters()], len(data), fit):
        pass
    return Critic(twins.requires_grad_(False), value.requires_grad_(False), scale, relative=True)


def discounted_sums(
    values: Float[Tensor, " M"], lengths: Int[Tensor, " E"], factor: float
) -> Float[Tensor, " M"]:
    """``Σ_k factor^k x_{t + k}`` up to the end of the episode of t.

    Arguments:
        values: x of all transitions, episode after episode.
        lengths: transitions of each episode.
        factor: in [0, 1].
    """
    sums = []
    for part in values.double().split(lengths.tolist()):
        backwards = np.asarray(lfilter([1.0], [1.0, -factor], part.flip(0).numpy()))
        sums.append(torch.from_numpy(backwards).flip(0))
    return torch.cat(sums).to(values)


def check_trace(trace: float) -> None:
    """Refuse a λ that is none.

    Raises:
        InputError: it is outside [0, 1].
    """
    if not 0 <= trace <= 1:
        raise InputError(f"trace={trace} must lie in [0, 1]")


@torch.no_grad()
def _read(value: nn.Module, states: Tensor) -> Tensor:
    return torch.cat([value(part)[:, 0] for part in states.split(CHUNK)])
