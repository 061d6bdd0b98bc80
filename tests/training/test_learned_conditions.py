"""What is learned of the posterior besides its steps, log Z(c) and log h(x_n, c), reads c."""

from dataclasses import replace

import pytest
import torch

from difftilt.errors import InputError
from difftilt.forms import Perceptron, ValueGuided
from difftilt.guidance.learned import ValueGuidance
from difftilt.models.labels import Labels
from difftilt.models.numbers import Numbers
from difftilt.models.reads import reads_of
from difftilt.objectives.balance import RTB
from difftilt.objectives.contrastive import CEP
from difftilt.objectives.payoff import RGDM
from difftilt.objectives.subtrajectory import DetailedBalance, SubTrajectoryBalance
from difftilt.posteriors import Posterior, Prior, Sources
from difftilt.smc.methods import SVDD, ValueTwisted
from difftilt.training.loop import train
from difftilt.training.plan import BehaviourWeights, Optimisation, Training
from difftilt.values.functions import Value
from gaussian_values import exact_values
from toys import Likelihood, gaussian_chain

STEPS = 3
OWN = BehaviourWeights(on_policy=1.0, pool=0.0)
FAST = Optimisation(learning_rate=0.01, log_z_learning_rate=0.1, decay_from=0.3, ema=0.9)
COLUMNS = torch.tensor([[-1.0, -0.2, 0.6], [0.4, 1.2, 2.0]])
PLAN = {"steps": 220, "batch": 128, "warm_start": 0.0, "behaviour": OWN, "optimisation": FAST}


def observed(x_0: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``log N(y; x_0, .6²)``."""
    return Likelihood((0.0,))(x_0 - y, torch.zeros(len(x_0)))


def at_pair(x_0: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
    return observed(x_0, COLUMNS[pair[:, 0].long(), pair[:, 1].long()][:, None])


def numbers(count: int, generator: torch.Generator) -> torch.Tensor:
    return 2 * torch.rand(count, 1, generator=generator) + torch.randint(
        -1, 1, (count, 1), generator=generator
    )


def pairs(count: int, generator: torch.Generator) -> torch.Tensor:
    draw = [torch.randint(0, size, (count,), generator=generator) for size in COLUMNS.shape]
    return torch.stack(draw, 1)


def form(**reads) -> Perceptron:
    return Perceptron(components=1, width=32, depth=2, frequencies=0, **reads)


NUMBERS = {"form": form(numbers=(1.0,)), "sources": Sources(conditions=numbers)}
PAIRS = {
    "form": form(labels=(2, 3)),
    "sources": Sources(conditions=pairs, labels=tuple(COLUMNS.shape)),
}


def states_and_truth(y: float, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points where the posterior of y is, and log h_n of them."""
    chain = gaussian_chain(1, STEPS)
    x = torch.linspace(-1, 2, 7)[:, None]
    return x, exact_values(chain, Likelihood((y,)))[n](x)


def said(value: Value, x: torch.Tensor, n: int, condition: torch.Tensor) -> torch.Tensor:
    chain = gaussian_chain(1, STEPS)
    rows = condition.expand(len(x), -1)
    return value(x, n, chain.predict(x, n), rows).detach()


def fitted_log_z(target, objective, how) -> torch.nn.Module:
    torch.manual_seed(0)
    plan = Training(objective=objective, **PLAN)
    state = target.state(target.posterior(how["form"]), plan, how["sources"])
    for _ in train(state, None):
        pass
    return state.log_z


@pytest.fixture(scope="module")
def learned_numbers() -> torch.nn.Module:
    target = Prior(gaussian_chain(1, STEPS)).tilt(observed)
    return fitted_log_z(target, RTB("learned"), NUMBERS)


@pytest.mark.parametrize("y", [-0.5, 0.5, 1.5])
def test_log_z_of_numbers_is_a_function_of_them(learned_numbers: torch.nn.Module, y: float):
    truth = Likelihood((y,)).log_z(gaussian_chain(1, STEPS))
    found = learned_numbers(1, torch.tensor([[y]])).detach()
    assert float(found[0]) == pytest.approx(truth, abs=0.08)


def test_log_z_of_pairs_of_labels_is_a_table():
    chain = gaussian_chain(1, STEPS)
    log_z = fitted_log_z(Prior(chain).tilt(at_pair), RTB("learned"), PAIRS)
    every = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    truth = [Likelihood((float(COLUMNS[a, b]),)).log_z(chain) for a, b in every]
    assert log_z(6, every).tolist() == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize("objective", [DetailedBalance(), SubTrajectoryBalance()])
def test_log_h_of_balances_reads_the_condition(objective):
    torch.manual_seed(0)
    posterior = Prior(gaussian_chain(1, STEPS)).tilt(at_pair).fit(objective, **PAIRS, **PLAN)
    assert posterior.value is not None
    for a, b in [(0, 0), (1, 2)]:
        for n in (1, 2):
            x, truth = states_and_truth(float(COLUMNS[a, b]), n)
            found = said(posterior.value, x, n, torch.tensor([[a, b]]))
            assert float((found - truth).abs().mean()) < 0.3


def test_a_value_trained_once_serves_every_role():
    """Guidance, twist, SVDD's value, a balance's flow and RGDM's pay-off, of each condition."""
    torch.manual_seed(0)
    target = Prior(gaussian_chain(1, STEPS)).tilt(observed)
    plan = {**PLAN, "behaviour": BehaviourWeights(prior=1.0, on_policy=0.0, pool=0.0)}
    value = target.fit(
        CEP(states="chain"),
        form=ValueGuided(numbers=(1.0,), width=32, depth=2, frequencies=0),
        sources=NUMBERS["sources"],
        **plan,
    ).value
    assert value is not None
    with pytest.raises(InputError, match="its form's own"):
        target.fit(CEP(), form=ValueGuided(numbers=(1.0,)), sources=Sources(value=value))
    y = torch.tensor([[1.5]])
    truth = Likelihood((1.5,)).log_z(target.prior.chain)
    prior = Posterior(target, target.prior.chain).given(y).certify(2000)
    guided = target.guided(ValueGuidance(value)).given(y).certify(2000)
    assert guided.ess > prior.ess + 0.2
    twisted = target.population(ValueTwisted(8, value)).given(y).draw(500, seed=1)
    assert twisted.log_w is not None
    assert float(twisted.log_w.exp().mean().log()) == pytest.approx(truth, abs=0.1)
    best = target.population(SVDD(8, value)).given(y).draw(500, seed=1)
    exact = Likelihood((1.5,)).posterior(target.prior.chain)[0]
    assert float(best.x_0.mean()) == pytest.approx(exact, abs=0.15)
    own = {**PLAN, "steps": 40}
    for objective, plan in [(SubTrajectoryBalance(), own), (RGDM("value"), {"steps": 40})]:
        sources = replace(NUMBERS["sources"], value=value)
        posterior = target.fit(objective, form=NUMBERS["form"], sources=sources, **plan)
        assert posterior.value is value
        assert posterior.given(y).certify(1000).ess > prior.ess


def test_readings_are_told_from_draws():
    drawn = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert reads_of(drawn) == Numbers((1.0, 1.0), centres=(2.0, 5.0))
    assert reads_of(torch.tensor([0, 1]), 4) == Labels((4,))
    assert reads_of(torch.zeros(5, 2, dtype=torch.long), (2, 3)) == Labels((2, 3))
    rows = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    assert Labels((2, 3)).row(rows, rows.float()).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("objective", "how", "sentence"),
    [
        (RTB("learned"), {**PAIRS, "sources": Sources(conditions=pairs)}, r"need Sources\(labels"),
        (
            RTB("learned"),
            {**PAIRS, "sources": Sources(conditions=pairs, labels=(2, 3, 4))},
            r"each of 2 labels, and it says \(2, 3, 4\)",
        ),
        (CEP(), {**NUMBERS, "form": ValueGuided()}, r"this value reads none"),
        (
            DetailedBalance(),
            {"sources": Sources(conditions=lambda n, g: torch.zeros(n, 2, 2))},
            r"\(B, K\), got",
        ),
    ],
)
def test_conditions_that_would_not_be_read_are_refused(objective, how, sentence):
    target = Prior(gaussian_chain(1, STEPS)).tilt(observed)
    with pytest.raises(InputError, match=sentence):
        target.fit(objective, **how, steps=1, batch=4)
    with pytest.raises(InputError, match="labels or numbers"):
        ValueGuided(labels=(2,), numbers=(1.0,)).kernel(target.prior.chain)
