"""The memory of an update of tokens with the vocabulary of a language model, V = 50,000.

Measured are the bytes that torch's allocator hands out and takes back during one update. With
eight paths and a fixed chunk they must not grow with the number of reveals K nor with the length L:
the largest thing there is are the log-probabilities of a chunk, ``chunk * V``.
"""

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import GENERATED, GIVEN, MaskedDiffusion, canvas
from difftilt.objectives.balance import RTB
from difftilt.posteriors import FullCopy, Prior, Sources
from difftilt.token_denoisers import TokenDenoiser, TokenNetwork
from difftilt.training.plan import BehaviourWeights, Optimisation, Training
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step

V, WIDTH, BATCH, CHUNK = 50_000, 2, 8, 8
LOG_PROBS = 4 * CHUNK * V
"""Bytes of the log-probabilities of a chunk."""
DENSE_GRADIENT = 4 * (V + 1) * WIDTH
"""Bytes of the gradient of the embedding or of the head, whatever K and L."""


class Bag(TokenNetwork):
    """Features that mix a position's with the mean of all; a head of V columns."""

    def __init__(self) -> None:
        super().__init__(V, V)
        self.embedding, self.head = nn.Embedding(V + 1, WIDTH), nn.Linear(WIDTH, V)

    def hidden(self, ids: Tensor, time: Tensor) -> Tensor:
        embedded = self.embedding(ids)
        return torch.tanh(embedded + embedded.mean(1, keepdim=True))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def training_of(length: int, reveals: int, behaviour: BehaviourWeights) -> TrainingState:
    denoiser = TokenDenoiser(Bag()).requires_grad_(False)
    target = Prior(Chain(denoiser, MaskedDiffusion(V, reveals), (length,))).tilt(
        lambda x: -(x[:, 0] % 7).float()
    )
    roles = torch.full((length,), GIVEN)
    roles[:reveals] = GENERATED

    def conditions(count: int, generator: torch.Generator) -> Tensor:
        ids = torch.randint(V, (count, length), generator=generator)
        return canvas(ids, roles.expand(count, -1))

    plan = Training(
        batch=BATCH,
        chunk=CHUNK,
        paths_per_condition=BATCH,
        warm_start=0.0,
        objective=RTB("batch"),
        optimisation=Optimisation(ema=0.0),
        behaviour=behaviour,
    )
    return target.state(target.posterior(FullCopy()), plan, Sources(conditions=conditions))


def memory_of_an_update(length: int, reveals: int, behaviour: BehaviourWeights) -> tuple[int, int]:
    """Bytes of the peak above the start, and of the largest allocation, of a second update."""
    state = training_of(length, reveals, behaviour)
    training_step(state)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        training_step(state)
    results = seen.profiler
    assert results is not None and results.kineto_results is not None
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    present = peak = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        present += event.nbytes()
        peak, largest = max(peak, present), max(largest, event.nbytes())
    return peak, largest


def test_memory_grows_neither_with_the_length_nor_with_the_reveals(unchecked: None):
    for behaviour in (
        BehaviourWeights(on_policy=1.0, pool=0.0),
        BehaviourWeights(on_policy=0.5, prior=0.5, pool=0.0),
    ):
        short, largest = memory_of_an_update(32, 4, behaviour)
        long, largest_of_long = memory_of_an_update(96, 12, behaviour)
        # The measurement sees what it should: log-probabilities of a chunk, and no more at once.
        assert LOG_PROBS <= largest <= 2.1 * LOG_PROBS
        assert largest_of_long <= 1.01 * largest
        # The embedding's and the head's: a race between the last use of each and the peak.
        assert long <= 1.05 * short + 2 * DENSE_GRADIENT
        assert short <= 12 * LOG_PROBS
