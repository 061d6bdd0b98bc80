"""Pairs of a molecule and a wanted value: what a posterior of every value is trained and judged by.

A molecule x* of the prior and a value ``y ~ N(property(x*), width² / β)`` make a draw of the joint
law, so that x* is one of the posterior ``p(x | y)`` itself: no weight, no search, and the reference
of a calibration.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain, Kernel
from difftilt.diagnostics.calibration import calibration
from difftilt.errors import InputError
from difftilt.forms import FullCopy
from difftilt.models.numbers import Numbers
from difftilt.posteriors import Prior, Sources, Target
from difftilt.recipes.base import tell
from difftilt.recipes.tables.makers import Setting, trained
from difftilt.sampling.draws import sample_paths
from difftilt.tasks.molecules.metrics import SCORES, Score, molecules_of
from difftilt.tasks.molecules.models import PROPERTIES, Property, molecule_prior
from difftilt.tasks.molecules.rewards import PropertyReward, ScoreReward

SOURCE = "shipped: molecules of QM9"
PAIRS, HELD_OUT = 1024, 60
SEED = 93_001
CHUNK = 256
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
DRAWS, LEVELS = 19, (0.5, 0.8, 0.9)
Reward = PropertyReward | ScoreReward


@dataclass(frozen=True)
class Wanted:
    """What is wanted of molecules, for any value of it.

    Arguments:
        name: a property of the regressor, or a score of rdkit.
        width: standard deviation around the value.
        valid: whether a sample of a regressor's property has to be a molecule.
        atoms: numbers of heavy atoms.
        steps: N.
        beta: β.
        pairs: how many pairs are simulated; ``HELD_OUT`` more are kept apart.

    Raises:
        InputError: a SMARTS, which has no value.
    """

    name: str
    width: float
    valid: bool
    atoms: tuple[int, ...]
    steps: int
    beta: float
    pairs: int = PAIRS

    def __post_init__(self) -> None:
        if self.name not in (*PROPERTIES, *SCORES):
            raise InputError(
                f"a posterior of every value needs a property that has values, not {self.name!r}; "
                f"choose one of {', '.join((*PROPERTIES, *SCORES))}, or give --value"
            )

    def reward(self) -> Reward:
        """Reads the wanted value off the condition's last number."""
        if self.name in PROPERTIES:
            return PropertyReward(cast("Property", self.name), None, self.width, valid=self.valid)
        return ScoreReward(cast("Score", self.name), None, self.width)

    def target(self) -> Target:
        """The prior, whose posteriors read the wanted value, tilted by the reward."""
        y = simulated(self).conditions[:, -1]
        reads = Numbers((float(y.std()),), centres=(float(y.mean()),))
        chain = molecule_prior(self.steps, reads)
        return Prior(chain, source=SOURCE).tilt(self.reward(), self.beta)

    def sources(self) -> Sources:
        """Pairs to start from, and their conditions to draw paths for."""
        x_0, conditions = simulated(self)[: self.pairs]
        return Sources(data=x_0, data_conditions=conditions)

    def contexts(self) -> Float[Tensor, "C 2"]:
        """Wanted values from the joint law's low to its high, for the first number of atoms."""
        conditions = simulated(self).conditions[: self.pairs]
        own = conditions[conditions[:, 0] == self.atoms[0], 1]
        values = torch.quantile(own, torch.tensor(QUANTILES).to(own))
        return torch.stack([torch.full_like(values, self.atoms[0]), values], 1)


@dataclass(frozen=True)
class Pairs:
    """Draws of the joint law.

    Arguments:
        x_0: molecules.
        conditions: number of atoms and value of each.
    """

    x_0: Float[Tensor, "n A F"]
    conditions: Float[Tensor, "n 2"]

    def __getitem__(self, rows: slice) -> tuple[Tensor, Tensor]:
        return self.x_0[rows], self.conditions[rows]


@cache
def simulated(wanted: Wanted) -> Pairs:
    """``pairs + HELD_OUT`` pairs, the same ones every time.

    Samples that are no molecule are left out: their reward is the floor.
    """
    tell(f"drawing {wanted.pairs + HELD_OUT} molecules of the prior")
    generator = torch.Generator().manual_seed(SEED)
    chain, reward = molecule_prior(wanted.steps), wanted.reward()
    every = isinstance(reward, PropertyReward) and not wanted.valid
    count, found, atoms, seed = 0, [], [], SEED
    while count < wanted.pairs + HELD_OUT:
        rows = torch.randint(len(wanted.atoms), (CHUNK,), generator=generator)
        asked, seed = torch.tensor(wanted.atoms)[rows], seed + 1
        x = sample_paths(chain.given(asked), CHUNK, seed).x_0
        kept = torch.tensor([every or m is not None for m in molecules_of(x)])
        found.append(x[kept])
        atoms.append(asked[kept])
        count += int(kept.sum())
    x_0 = torch.cat(found)[: wanted.pairs + HELD_OUT]
    values = torch.cat([reward.values(part) for part in x_0.split(CHUNK)])
    y = values + wanted.width / wanted.beta**0.5 * torch.randn(len(x_0), generator=generator)
    return Pairs(x_0, torch.stack([torch.cat(atoms)[: len(x_0)].to(y), y], 1))


def held_out(wanted: Wanted) -> tuple[Float[Tensor, "M A F"], Float[Tensor, "M 2"]]:
    """Pairs that nothing was trained on."""
    return simulated(wanted)[slice(wanted.pairs, None)]


class Bound(Kernel):
    """A conditional posterior's kernel under one condition, for chains without any.

    Arguments:
        kernel: reads conditions.
        condition: (...) of every sample.
    """

    def __init__(self, kernel: Kernel, condition: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        self.condition = condition

    def forward(self, x: Tensor, n: Any, prediction: Tensor, condition: Tensor | None) -> Any:
        return self.kernel(x, n, prediction, self.condition.expand(len(x), -1))


def conditionally_trained(wanted: Wanted, value: float) -> Callable[[Setting], Chain]:
    """A maker of EDM's conditional model: the denoiser of pairs, asked for one value.

    Half of the network calls simulate the pairs, the rest denoise them.

    Arguments:
        wanted: what is wanted, of any value; its number of pairs follows from the calls.
        value: the one that is asked for.

    Source: Hoogeboom et al. 2022, section 5.3 (arXiv 2203.17003).
    """

    def make(setting: Setting) -> Chain:
        half = setting.calls // 2
        own = replace(wanted, pairs=max(8, half // wanted.steps - HELD_OUT))
        calls = setting.calls - half
        plan = replace(setting.plan, warm_start=1.0, anchor=0.0, network_calls=calls)
        plan = replace(plan, warm_start_from="data")
        target = own.target()
        apart = Setting(target, FullCopy(), plan, 0, 0, sources=own.sources())
        kernel = trained()(apart).kernel
        assert kernel is not None
        spent = setting.target.prior.chain.calls
        spent.posterior += target.prior.chain.calls.total + half
        condition = torch.tensor([float(own.atoms[0]), value])
        return setting.target.prior.chain.tilted(Bound(kernel, condition))

    return make


@torch.no_grad()
def judged(wanted: Wanted, posterior: Chain, seed: int) -> dict[Any, dict[str, float]]:
    """How sharp and how calibrated the draws for held-out values are, prior's and posterior's.

    The rank of x*'s property among draws for its y is uniform under the exact posterior; under the
    prior too, which is calibrated and not sharp.
    """
    molecules, conditions = held_out(wanted)
    reward, exact = wanted.reward(), wanted.reward().values(molecules)
    found: dict[Any, dict[str, float]] = {}
    for name, chain in (("prior", posterior.prior), ("posterior", posterior)):
        asked = conditions.repeat_interleave(DRAWS, 0)
        x = sample_paths(chain.given(asked), len(asked), seed + 5, batch=CHUNK).x_0
        values = torch.cat([reward.values(part) for part in x.split(CHUNK)])
        valid = torch.tensor([m is not None for m in molecules_of(x)])
        off = (values - asked[:, 1]).abs()
        drawn = values.nan_to_num(float("-inf")).reshape(-1, DRAWS)
        generator = torch.Generator().manual_seed(seed)
        ranked = calibration(exact, drawn, generator=generator)
        low, high = torch.nanquantile(values.reshape(-1, DRAWS), torch.tensor([0.05, 0.95]), 1)
        figures = {"error": off[valid].mean(), "width": (high - low).nanmean()}
        figures |= {level: ranked.coverage(level) for level in LEVELS}
        for key, value in {**figures, "p": ranked.p_value}.items():
            found.setdefault(key, {})[name] = float(value)
    return found
