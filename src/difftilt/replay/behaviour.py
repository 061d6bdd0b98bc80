"""Where the paths of a training step come from.

Relative trajectory balance holds on every path, so its paths may come from anywhere; what decides a
training is that they cover the posterior. A ``Behaviour`` draws scored paths; several are mixed by
weights.

| behaviour | paths |
|---|---|
| ``OnPolicy(widen)`` | the posterior's own, its noise widened for exploration |
| ``PriorPaths()`` | the prior's own |
| ``Pooled(...)`` | a pool of prior and posterior paths, resampled by their importance weights |
| ``Replay(...)`` | ends that were found before, noised back to paths |
| ``DataBridges(data)`` | given data, noised to paths |
| ``LocalSearch(...)`` | replayed ends noised part of the way and denoised again |
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.chains.rollouts import Ratio, back_and_forth, bridge, rollout
from difftilt.chains.scoring import log_ratio
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.replay.buffer import ReplayBuffer
from difftilt.replay.pool import PathPool

LogReward = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Scored:
    """Paths with their rewards.

    Arguments:
        path: B paths.
        log_r: (B,) ``log r(x_0)`` in nats, before any β.
        replayed: (B,) buffer rows the paths came from, or None.
    """

    path: Path
    log_r: Float[Tensor, " B"]
    replayed: Tensor | None = None


@dataclass(frozen=True)
class Situation:
    """What a behaviour may use.

    Arguments:
        chain: the posterior, with a condition for each path bound if it is conditional.
        log_reward: ``(x_0, condition) -> log r (B,)``.
        beta: the present β.
        generator: of all that is drawn.
        buffer: ends found before.
        chunk: states per network call where paths are re-visited.
        ratio: whether Λ of the posterior's own new paths is wanted, and with its gradient.
        ends: whether of given ends nothing but themselves is wanted; a bridge costs N calls each.
    """

    chain: Chain
    log_reward: LogReward
    beta: float
    generator: torch.Generator
    buffer: ReplayBuffer
    chunk: int | None = None
    ratio: Ratio = True
    ends: bool = False

    @property
    def noise(self) -> GeneratorNoise:
        """The generator as a source of noise."""
        return GeneratorNoise(self.generator)

    def replayed(self, rows: Tensor) -> tuple[Chain, Tensor]:
        """The chain bound to the conditions of some ends of the buffer, and those ends."""
        condition = self.buffer.condition
        chain = self.chain if condition is None else self.chain.given(condition[rows])
        return chain, self.buffer.x_0[rows]

    def bridge(self, chain: Chain, x_0: Shaped[Tensor, "B ..."]) -> Path:
        """Given ends under a chain bound to their conditions, noised to paths if that is wanted."""
        if self.ends:
            return Path(x_0[None], condition=chain.condition)
        return bridge(chain, x_0, self.noise)

    def score(self, path: Path, replayed: Tensor | None = None) -> Scored:
        """Ask the reward about the ends of paths."""
        return Scored(path, self.log_reward(path.x_0, path.condition), replayed)


class Behaviour(ABC):
    """A source of scored paths."""

    @abstractmethod
    def draw(self, situation: Situation, count: int) -> Scored:
        """``count`` scored paths; a conditional chain has a condition of ``count`` rows bound."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of this behaviour."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over the tensors of ``state()``."""
        assert not state


@dataclass
class OnPolicy(Behaviour):
    """The posterior's own paths.

    Arguments:
        widen: scale of the noise relative to the posterior's, >= 1 to explore.
    """

    widen: float = 1.0

    def draw(self, situation: Situation, count: int) -> Scored:
        chain, noise = situation.chain, situation.noise
        return situation.score(rollout(chain, count, noise, self.widen, ratio=situation.ratio))


@dataclass
class PriorPaths(Behaviour):
    """The prior's own paths."""

    def draw(self, situation: Situation, count: int) -> Scored:
        prior = situation.chain.prior
        return situation.score(rollout(prior, count, situation.noise, ratio=False))


REFRESH = 8
"""Draws between additions to a full pool: a few large rollouts cost less than many small ones."""


class Pooled(Behaviour):
    """Paths resampled from a pool that covers the posterior (see ``PathPool``).

    Arguments:
        capacity: paths in the pool.
        fresh: paths added per draw once the pool is full (every 8 draws); 0 keeps the first.
        prior_share: share of prior paths among the added ones, in (0, 1].
        effective: effective sample size, as a share of the pool, that the tempering keeps.
        memory: bytes that the pool may take, or None.
    """

    def __init__(
        self,
        capacity: int = 20_000,
        fresh: int = 256,
        prior_share: float = 0.5,
        effective: float = 0.2,
        memory: int | None = None,
    ) -> None:
        if not 0 < prior_share <= 1:
            raise InputError(f"prior_share must lie in (0, 1], got {prior_share}")
        self.pool = PathPool(capacity, memory)
        self.fresh = fresh
        self.prior_share = prior_share
        self.effective = effective
        self.exponent = 1.0
        self.draws = 0

    def draw(self, situation: Situation, count: int) -> Scored:
        if len(self.pool) < self.pool.capacity:
            self._grow(situation, max(self.fresh, count), prior_share=1.0)
        elif self.fresh and self.draws % REFRESH == 0:
            self._grow(situation, REFRESH * self.fresh, self.prior_share)
        while not self.pool.hopeful and len(self.pool) < self.pool.capacity:
            self._grow(situation, max(self.fresh, count), prior_share=1.0)
        if self.draws % 20 == 0:
            self.exponent = self.pool.exponent(situation.beta, self.effective)
        self.draws += 1
        path, log_r = self.pool.draw(count, situation.beta, self.exponent, situation.generator)
        return Scored(path, log_r)

    def state(self) -> dict[str, Tensor]:
        counters = torch.tensor([float(self.draws), self.exponent], dtype=torch.float64)
        return {"counters": counters, **self.pool.state()}

    def load(self, state: dict[str, Tensor]) -> None:
        draws, self.exponent = state["counters"].tolist()
        self.draws = int(draws)
        self.pool.load({k: v for k, v in state.items() if k != "counters"})

    def _grow(self, situation: Situation, count: int, prior_share: float) -> None:
        own = round(count * (1 - prior_share))
        prior = _resized(situation.chain.prior, slice(own, count))
        paths = [rollout(prior, count - own, situation.noise)]
        if own:
            paths.append(rollout(_resized(situation.chain, slice(own)), own, situation.noise))
        scored = situation.score(Path.joined(paths))
        ratio = self._ratios(situation, paths) if own else torch.zeros(count)
        self.pool.add(scored.path, scored.log_r, ratio, (count - own) / count)

    @staticmethod
    def _ratios(situation: Situation, paths: list[Path]) -> Tensor:
        assert paths[1].log_ratio is not None
        with torch.no_grad():
            prior_paths = log_ratio(situation.chain, paths[0], situation.chunk)
        return torch.cat([prior_paths, paths[1].log_ratio])


@dataclass
class Replay(Behaviour):
    """Ends from the replay buffer, noised back to paths by the forward process."""

    def draw(self, situation: Situation, count: int) -> Scored:
        rows = situation.buffer.draw(count, situation.generator)
        chain, x_0 = situation.replayed(rows)
        return situation.score(situation.bridge(chain, x_0), rows)


@dataclass
class DataBridges(Behaviour):
    """Given data, noised to paths by the forward process.

    Arguments:
        data: (n, *event).
        condition: (n, ...) of each, bound instead of the situation's; or None.
        together: rows drawn of one condition, which follow each other in the data (fewer are drawn
            again): what is compared within a condition needs several ends of it.

    Raises:
        InputError: data and conditions differ in number.
    """

    data: Shaped[Tensor, "n ..."]
    condition: Shaped[Tensor, "n ..."] | None = None
    together: int = 1

    def __post_init__(self) -> None:
        if self.condition is not None and len(self.condition) != len(self.data):
            raise InputError(
                f"each row of the data has its own condition, got {len(self.data)} rows and "
                f"{len(self.condition)} conditions"
            )
        if self.together > 1 and self.condition is not None:
            self._lengths = torch.unique_consecutive(self.condition, return_counts=True, dim=0)[1]

    def draw(self, situation: Situation, count: int) -> Scored:
        rows = self._rows(count, situation.generator)
        chain, x_0 = situation.chain, self.data[rows]
        # Tokens, whose predictions are of a part of x_0, stay integers.
        x_0 = x_0.to(chain.like if chain.diffusion.whole else chain.like.device)
        if self.condition is not None:
            chain = chain.given(self.condition[rows].to(chain.like.device))
        return situation.score(situation.bridge(chain, x_0))

    def _rows(self, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
        if self.together == 1 or self.condition is None:
            return torch.randint(len(self.data), (count,), generator=generator)
        lengths, sets = self._lengths, -(-count // self.together)
        chosen = torch.randint(len(lengths), (sets,), generator=generator)
        first = (torch.rand(sets, generator=generator) * lengths[chosen]).long()
        place = (first[:, None] + torch.arange(self.together)) % lengths[chosen][:, None]
        starts = lengths.cumsum(0) - lengths
        return (starts[chosen][:, None] + place).flatten()[:count]


@dataclass
class LocalSearch(Behaviour):
    """Replayed ends noised up to a random level and denoised again: new ends near good ones.

    Arguments:
        depth: largest share of the chain's levels to go up, in (0, 1].

    Source: back-and-forth local search, Kim et al. 2024 (arXiv 2310.02710).
    """

    depth: float = 0.5

    def draw(self, situation: Situation, count: int) -> Scored:
        rows = situation.buffer.draw(count, situation.generator)
        highest = min(situation.chain.steps, max(2, int(self.depth * situation.chain.steps)))
        level = int(torch.randint(1, highest + 1, (), generator=situation.generator))
        chain, x_0 = situation.replayed(rows)
        return situation.score(back_and_forth(chain, x_0, level, situation.noise))


def _resized(chain: Chain, rows: slice) -> Chain:
    """The chain with some rows of its condition, which are repeated from the first as needed."""
    if chain.condition is None:
        return chain
    wanted = torch.arange(rows.start or 0, rows.stop, device=chain.condition.device)
    return chain.given(chain.condition[wanted % len(chain.condition)])
