"""A posterior that chooses the order: the prior at the start, exact where no fixed order is."""

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import back_and_forth, bridge, rollout
from difftilt.chains.scoring import backward, log_ratio
from difftilt.diffusions.masked import GENERATED, GIVEN, SUFFIX, canvas
from difftilt.diffusions.orders import AnyOrder, Stepwise
from difftilt.errors import InputError
from difftilt.forms import FullCopy, LoRA
from difftilt.kernels.order import OrderKernel
from difftilt.noise import GeneratorNoise, StreamNoise
from token_chains import (
    LENGTH,
    TOKENS,
    Linear,
    arbitrary,
    end_law,
    every_end,
    every_path,
    masked_chain,
    permutations,
    place_of,
)

FORM = FullCopy(learned_order=True)


def starts(chain: Chain) -> Tensor:
    return chain.base(1).at(torch.full((1, LENGTH), chain.steps + 1))


def posterior(moved: float = 0.0) -> Chain:
    prior = masked_chain(arbitrary(), Stepwise())
    kernel = FORM.kernel(prior)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += moved * torch.randn(parameter.shape)
    return prior.tilted(kernel)


def test_it_starts_at_the_prior():
    chain = posterior()
    path = rollout(chain, 50, StreamNoise(1, range(50)))
    assert torch.equal(path.log_ratio, torch.zeros(50))
    every = log_ratio(chain, every_path(chain))
    assert torch.equal(every, torch.zeros_like(every))


def test_its_law_sums_to_one_and_is_what_it_draws():
    """False-alarm rate under 1e-20 (McDiarmid: the total variation is 2 means above its mean)."""
    chain = posterior(moved=0.7)
    law = end_law(chain, starts(chain))
    assert torch.allclose(law.sum(), torch.ones((), dtype=torch.float64), atol=1e-6)
    draws = 40_000
    drawn = rollout(chain, draws, GeneratorNoise(torch.Generator().manual_seed(2)), record=False)
    seen = torch.bincount(place_of(drawn.x_0), minlength=len(law)) / draws
    assert float((seen - law).abs().sum() / 2) < 1.5 * (len(law) / draws) ** 0.5


def test_the_log_ratio_of_a_path_is_that_of_the_chain_that_drew_it():
    chain = posterior(moved=0.7)
    path = rollout(chain, 64, StreamNoise(1, range(64)))
    again = log_ratio(chain, path, chunk=7)
    assert path.log_ratio is not None and path.log_ratio.abs().min() > 0
    assert torch.allclose(path.log_ratio, again, atol=1e-6)
    weights = torch.exp(-log_ratio(chain, every_path(chain)).double())
    law = torch.exp(log_ratio(chain, every_path(chain)).double() + prior_log_prob(chain))
    assert torch.allclose(law.sum(), torch.ones((), dtype=torch.float64), atol=1e-6)
    assert torch.allclose((law * weights).sum(), torch.ones((), dtype=torch.float64), atol=1e-6)


def prior_log_prob(chain: Chain) -> Tensor:
    """``log p`` of every path, orders included, from the table alone."""
    path = every_path(chain)
    total = torch.full((path.batch,), -torch.arange(1.0, LENGTH + 1).log().sum().item()).double()
    for n in range(1, LENGTH + 1):
        x, landed = path.states[n], path.states[n - 1]
        position = (x == TOKENS + n).long().argmax(1, keepdim=True)
        logits = chain.denoiser.network.hidden(x.clamp(max=TOKENS), torch.zeros(len(x)))
        log_probs = logits[..., :TOKENS].double().log_softmax(2)
        rows = torch.arange(len(x))
        total += log_probs[rows, position[:, 0], landed.gather(1, position)[:, 0]]
    return total


def test_one_pass_of_the_network_per_step(monkeypatch: pytest.MonkeyPatch):
    chain = posterior(moved=0.7)
    assert isinstance(chain.kernel, OrderKernel)
    network, seen = chain.kernel.denoiser.network, []
    original = type(network).hidden

    def counting(self, ids: Tensor, time: Tensor) -> Tensor:
        if self is network:
            seen.append(len(ids))
        return original(self, ids, time)

    monkeypatch.setattr(type(network), "hidden", counting)
    drawn = rollout(chain, 8)
    assert sum(seen) == 8 * LENGTH == chain.calls.posterior
    seen.clear()
    kept = rollout(chain, 8, ratio="differentiable")
    assert kept.log_ratio is not None and kept.log_ratio.requires_grad
    assert sum(seen) == 8 * LENGTH
    seen.clear()
    log_ratio(chain, drawn)
    assert sum(seen) == 8 * LENGTH


def test_features_are_not_used_again_after_an_update():
    chain = posterior(moved=0.7)
    assert isinstance(chain.kernel, OrderKernel)
    x = starts(chain).expand(4, -1)
    noise = GeneratorNoise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        marked = chain.planned(x, LENGTH, noise)
        prediction = chain.predict(marked, LENGTH)
        chain.tilt(marked, LENGTH, prediction)
        for parameter in chain.kernel.parameters():
            parameter += torch.randn(parameter.shape)
        after = chain.tilt(marked, LENGTH, prediction)
        anew = chain.tilt(marked.clone(), LENGTH, prediction)
    assert torch.equal(after.log_probs, anew.log_probs)
    assert torch.equal(after.order, anew.order)


def test_the_gradient_in_chunks_is_that_of_the_kept_graph():
    chain = posterior(moved=0.5)
    kept = rollout(chain, 16, StreamNoise(0, range(16)), ratio="differentiable")
    coefficients = torch.randn(16)
    (coefficients * kept.log_ratio).sum().backward()
    assert isinstance(chain.kernel, OrderKernel)
    wanted = [p.grad.clone() for p in chain.kernel.parameters()]
    assert float(chain.kernel.head.weight.grad.abs().max()) > 0
    chain.kernel.zero_grad()
    backward(chain, rollout(chain, 16, StreamNoise(0, range(16))), coefficients, chunk=5)
    for parameter, gradient in zip(chain.kernel.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)


def fitted(form: FullCopy, order: Stepwise | AnyOrder) -> tuple[float, float]:
    """Squared balance over all paths, minimised: its root mean square and the distance left."""
    prior = masked_chain(arbitrary(), order)
    first = starts(prior) if order.stepwise else TOKENS + permutations()
    law = end_law(prior, first)
    log_r = 1.5 * torch.randn(len(law))
    target = law * log_r.double().exp()
    chain, paths = prior.tilted(form.kernel(prior)), every_path(prior)
    wanted = log_r[place_of(paths.x_0)]
    log_z = torch.nn.Parameter(torch.zeros(()))
    parameters = [*chain.kernel.parameters(), log_z]
    optimiser = torch.optim.LBFGS(parameters, max_iter=600, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (log_z + log_ratio(chain, paths) - wanted).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    reached = end_law(chain, first)
    distance = float((reached - target / target.sum()).abs().sum() / 2)
    return float(loss().detach()) ** 0.5, distance


@pytest.mark.usefixtures("unchecked")
def test_it_is_exact_for_a_prior_whose_conditionals_disagree():
    """The frozen uniform order leaves a floor; the learned one none."""
    _, learned = fitted(FORM, Stepwise())
    torch.manual_seed(20_405)
    _, frozen = fitted(FullCopy(), AnyOrder())
    assert learned < 1e-3
    assert frozen > 0.03


def test_clamped_positions_stay_and_rows_with_fewer_masks_cost_nothing():
    chain = posterior(moved=0.7)
    tokens = torch.randint(0, TOKENS, (6, LENGTH))
    roles = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 2, 1], [2, 1, 0], [0, 0, 0]])
    bound = chain.given(canvas(tokens, roles))
    path = rollout(bound, 6, StreamNoise(1, range(6)))
    fixed = roles != GENERATED
    shown = torch.where(roles == SUFFIX, TOKENS, tokens)
    assert torch.equal(path.x_0[fixed], shown[fixed])
    assert bool((path.x_0[roles == GENERATED] < TOKENS).all()) and GIVEN == 0
    assert chain.calls.prior == chain.calls.posterior == int((roles == GENERATED).sum())
    assert torch.allclose(path.log_ratio, log_ratio(bound, path), atol=1e-6)
    assert float(path.log_ratio[5]) == 0.0
    # A row of one mask has nothing to choose.
    one = rollout(bound.given(canvas(tokens[2:3], roles[2:3])), 1)
    assert isinstance(chain.kernel, OrderKernel)
    tilt = chain.given(one.condition).tilt(one.states[1], 1, torch.zeros(1))
    assert tilt.order.tolist() == [0.0]


def test_adapters_and_a_head_leave_the_prior_as_it_is():
    prior = masked_chain(Linear(), Stepwise())
    before = rollout(prior, 20, StreamNoise(5, range(20)))
    chain = prior.tilted(LoRA(2, targets="all", learned_order=True).kernel(prior))
    path = rollout(chain, 20, StreamNoise(1, range(20)))
    assert torch.equal(path.log_ratio, torch.zeros(20))
    with torch.no_grad():
        for parameter in chain.kernel.parameters():
            parameter += 0.5 * torch.randn(parameter.shape)
    path = rollout(chain, 20, StreamNoise(1, range(20)))
    assert float(path.log_ratio.abs().min()) > 0
    assert torch.allclose(path.log_ratio, log_ratio(chain, path, chunk=9), atol=1e-5)
    assert torch.equal(rollout(prior, 20, StreamNoise(5, range(20))).states, before.states)
    backward(chain, path, torch.randn(20), chunk=9)
    assert all(float(p.grad.abs().max()) > 0 for p in chain.kernel.parameters())


def test_bridges_and_returns_are_scored_like_paths():
    chain = posterior(moved=0.7)
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    through = bridge(chain, every_end(), noise)
    assert torch.equal(through.x_0, every_end())
    again = back_and_forth(chain, every_end(), 2, noise)
    for path in (through, again):
        marks = [(path.states[n] == TOKENS + n).sum(1) for n in range(1, LENGTH + 1)]
        assert torch.equal(torch.stack(marks), torch.ones(LENGTH, path.batch, dtype=torch.long))
        assert bool(torch.isfinite(log_ratio(chain, path)).all())


def test_draws_do_not_depend_on_the_batch():
    chain = posterior(moved=0.7)
    many = rollout(chain, 9, StreamNoise(3, range(9))).states
    assert torch.equal(rollout(chain, 2, StreamNoise(3, (4, 7))).states, many[:, [4, 7]])


@pytest.mark.parametrize("order", [AnyOrder(), AnyOrder(2)])
def test_another_order_is_refused(order: AnyOrder):
    with pytest.raises(InputError, match=r"Stepwise\(\)"):
        FORM.kernel(masked_chain(arbitrary(), order))


def test_another_state_space_is_refused():
    from toys import gaussian_chain

    with pytest.raises(InputError, match="prior of tokens"):
        FORM.kernel(gaussian_chain())
