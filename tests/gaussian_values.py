"""``log h`` of the toy Gaussian chain under its Gaussian likelihood, in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.forms import ValueGuided
from difftilt.objectives.base import Objective
from difftilt.training.plan import BehaviourWeights, Training, suited
from difftilt.training.state import TrainingState
from difftilt.values.functions import Value
from difftilt.values.kernel import ValueKernel
from toys import Likelihood, LinearKernel, gaussian_chain, linear_posterior, quick_plan, toy_state

LIKELIHOOD = Likelihood()
SMALL = ValueGuided(width=32, depth=2, frequencies=0)
PRIOR = BehaviourWeights(prior=1, on_policy=0, pool=0)
OWN = BehaviourWeights(on_policy=1, pool=0)


@dataclass(frozen=True)
class Parabola:
    """``-k x²/2 + b x + c`` of each coordinate, summed."""

    k: float
    b: float
    c: float

    def __call__(self, x: Tensor) -> Tensor:
        return (-0.5 * self.k * x**2 + self.b * x + self.c).flatten(1).sum(1)

    def slope(self, x: Tensor) -> Tensor:
        return self.b - self.k * x

    def before(self, offset: float, gain: float, std: float) -> "Parabola":
        """``log E exp`` of it after ``x' = offset + gain x + std ε``, as a function of x."""
        r = 1 / (1 + std**2 * self.k)
        k, b = r * self.k, r * self.b
        c = self.c + 0.5 * std**2 * r * self.b**2 + 0.5 * math.log(r)
        return Parabola(gain**2 * k, gain * (b - k * offset), c + b * offset - 0.5 * k * offset**2)


def step_of(chain: Chain, n: int) -> tuple[float, float, float]:
    """Offset, gain and std of the prior's step n, of one coordinate."""
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    law = chain.law(chain.predict(ends, n), ends, n)
    return float(law.mean[0]), float(law.mean[1] - law.mean[0]), float(law.std)


def log_likelihood(likelihood: Likelihood, beta: float = 1.0) -> Parabola:
    """β log r of one coordinate."""
    precision, y = beta / likelihood.sigma**2, likelihood.y[0]
    norm = beta * math.log(likelihood.sigma * math.sqrt(2 * math.pi))
    return Parabola(precision, precision * y, -0.5 * precision * y**2 - norm)


def exact_values(chain: Chain, likelihood: Likelihood, beta: float = 1.0) -> list[Parabola]:
    """``log h_0 ... log h_N``."""
    found = [log_likelihood(likelihood, beta)]
    for n in range(1, chain.steps + 1):
        found.append(found[-1].before(*step_of(chain, n)))
    return found


def exact_tilt(chain: Chain, n: int, value: Parabola) -> tuple[float, float, float]:
    """Shift, slope and log-scale (``LinearKernel``) of step n tilted by a value of its landing."""
    offset, gain, std = step_of(chain, n)
    r = 1 / (1 + std**2 * value.k)
    return std * r * (value.b - value.k * offset), -std * r * value.k * gain, 0.5 * math.log(r)


class ExactValue(Value):
    """The closed form as a value."""

    def __init__(self, chain: Chain, likelihood: Likelihood) -> None:
        super().__init__()
        self.each = exact_values(chain, likelihood)

    def forward(self, x: Tensor, n, prediction: Tensor, condition=None, beta=1.0) -> Tensor:
        if isinstance(n, int):
            return self.each[n](x)
        every = torch.stack([value(x) for value in self.each])
        return every[n, torch.arange(len(x))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def guided(steps: int = 3, form: ValueGuided = SMALL, beta: float = 1.0) -> Chain:
    prior = gaussian_chain(1, steps)
    kernel = form.kernel(prior)
    assert isinstance(kernel, ValueKernel)
    return prior.tilted(kernel.at(beta))


def linear(steps: int = 3, labels: int = 1) -> Chain:
    chain = linear_posterior(1, steps, labels)
    assert chain.kernel is not None
    return chain.prior.tilted(chain.kernel)


def tilted_exactly(steps: int = 3, share: float = 1.0) -> Chain:
    """A linear posterior, part of the way to the exact one."""
    chain = linear(steps)
    values = exact_values(chain.prior, LIKELIHOOD)
    assert isinstance(chain.kernel, LinearKernel)
    with torch.no_grad():
        for n in range(1, steps + 1):
            exact = torch.tensor(exact_tilt(chain.prior, n, values[n - 1]))
            chain.kernel.table[:, 0, n, 0] = share * exact
    return chain


def plan_of(objective: Objective, **changes) -> Training:
    return quick_plan(**{**suited(objective), "warm_start": 0.0, "objective": objective, **changes})


def state_of(objective: Objective, chain: Chain, beta: float = 1.0, **changes) -> TrainingState:
    return toy_state(plan_of(objective, **changes), chain, LIKELIHOOD, beta=beta)


def exact_table(chain: Chain, values: list[Parabola]) -> Tensor:
    each = [exact_tilt(chain, n, values[n - 1]) for n in range(1, chain.steps + 1)]
    return torch.tensor(each).T
