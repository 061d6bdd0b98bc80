"""Tokens that change into any other: the kernel averaged by hand, laws and ratios enumerated."""

import itertools

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.chains.rollouts import back_and_forth, bridge, rollout
from difftilt.chains.scoring import backward, log_ratio, step_scores
from difftilt.diffusions.masked import GENERATED, canvas
from difftilt.diffusions.uniform import UniformDiffusion
from difftilt.errors import InputError
from difftilt.forms import FullCopy, LoRA
from difftilt.noise import GeneratorNoise, StreamNoise
from difftilt.token_denoisers import TokenDenoiser, TokenNetwork
from difftilt.transitions.categorical import CategoricalTilt

TOKENS, LENGTH, STEPS = 3, 2, 3


class Clocked(TokenNetwork):
    """Logits of their own for every state and step; no mask."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(TOKENS, mask_id=-1)
        self.table = torch.nn.Parameter(logits)

    def hidden(self, ids: Tensor, time: Tensor) -> Tensor:
        step = (time * (len(self.table) - 1)).round().long()
        place = (ids * TOKENS ** torch.arange(ids.shape[1] - 1, -1, -1)).sum(1)
        return self.table[step, place]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class Layered(TokenNetwork):
    """A perceptron, with layers that adapters fit on."""

    def __init__(self) -> None:
        super().__init__(TOKENS, mask_id=-1)
        self.first = torch.nn.Linear(LENGTH * TOKENS + 1, LENGTH * 8)
        self.last = torch.nn.Linear(8, TOKENS)

    def hidden(self, ids: Tensor, time: Tensor) -> Tensor:
        code = torch.nn.functional.one_hot(ids, TOKENS).float().flatten(1)
        return torch.tanh(self.first(torch.cat([code, time[:, None]], 1))).unflatten(1, (LENGTH, 8))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.last(hidden)


def chain_of(network: TokenNetwork, length: int = LENGTH, steps: int = STEPS, banned=()) -> Chain:
    denoiser = TokenDenoiser(network, banned).eval().requires_grad_(False)
    return Chain(denoiser, UniformDiffusion(TOKENS, steps), (length,))


def prior(banned: tuple[int, ...] = ()) -> Chain:
    return chain_of(Clocked(torch.randn(STEPS + 1, TOKENS**LENGTH, LENGTH, TOKENS)), banned=banned)


def posterior(moved: float = 0.7, banned: tuple[int, ...] = ()) -> Chain:
    chain = prior(banned)
    kernel = FullCopy().kernel(chain)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += moved * torch.randn(parameter.shape)
    return chain.tilted(kernel)


def every_state(length: int = LENGTH) -> Tensor:
    return torch.tensor(list(itertools.product(range(TOKENS), repeat=length)))


def by_hand(denoiser: TokenDenoiser, n: int, steps: int, length: int = LENGTH) -> Tensor:
    """``p(x_s | x_t)`` (from, to): Bayes' rule for every x_0 of every position, then the mean."""
    states, diffusion = every_state(length), UniformDiffusion(TOKENS, steps)
    pi = denoiser(states, diffusion.level(n, states)).detach().double().exp()
    a_t, a_s = 1 - n / steps, 1 - (n - 1) / steps

    def forward(kept: float) -> Tensor:
        return kept * torch.eye(TOKENS).double() + (1 - kept) / TOKENS

    step, clean, noisy = forward(a_t / a_s), forward(a_s), forward(a_t)
    # (x_t, x_0, x_s): q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0).
    bayes = step.T[:, None, :] * clean[None] / noisy.T[:, :, None]
    assert torch.allclose(bayes.sum(2), torch.ones(TOKENS, TOKENS, dtype=torch.float64))
    law = torch.ones(len(states), len(states), dtype=torch.float64)
    for i in range(length):
        mean = torch.einsum("bv,bvs->bs", pi[:, i], bayes[states[:, i]])
        law *= mean[:, states[:, i]]
    return law


@pytest.mark.parametrize("n", range(1, STEPS + 1))
def test_the_step_is_the_mean_of_bayes_rule(n: int):
    chain, states = prior(), every_state()
    assert isinstance(chain.denoiser, TokenDenoiser)
    wanted = by_hand(chain.denoiser, n, STEPS)
    rows, columns = torch.cartesian_prod(*[torch.arange(len(states))] * 2).unbind(1)
    law = chain.law(chain.predict(states[rows], n), states[rows], n)
    found = law.log_prob(states[columns]).double().exp().reshape(wanted.shape)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-8)
    assert torch.allclose(found.sum(1), torch.ones(len(states), dtype=torch.float64), atol=1e-6)


def test_the_chain_draws_its_law():
    """False-alarm rate under 1e-20 (McDiarmid: the total variation is 2 means above its mean)."""
    chain, draws = prior(), 40_000
    assert isinstance(chain.denoiser, TokenDenoiser)
    law = torch.full((TOKENS**LENGTH,), TOKENS**-LENGTH, dtype=torch.float64)
    for n in range(STEPS, 0, -1):
        law = law @ by_hand(chain.denoiser, n, STEPS)
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    x_0 = rollout(chain, draws, noise, record=False).x_0
    seen = torch.bincount((x_0 * torch.tensor([TOKENS, 1])).sum(1), minlength=len(law)) / draws
    assert float((seen - law).abs().sum() / 2) < 1.5 * (len(law) / draws) ** 0.5


def exact_network(data: Tensor, steps: int) -> Clocked:
    """``log q(x_0 | x_t)`` of one token whose law is known, up to a constant."""
    alpha = 1 - torch.arange(steps + 1) / steps
    table = torch.stack([data * (a * torch.eye(TOKENS) + (1 - a) / TOKENS) for a in alpha]).log()
    return Clocked(table.nan_to_num(neginf=-1e9)[:, :, None].float())


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_the_exact_denoiser_of_one_token_gives_the_data_back(steps: int):
    data = torch.tensor([0.7, 0.25, 0.05]).double()
    chain = chain_of(exact_network(data, steps), 1, steps)
    assert isinstance(chain.denoiser, TokenDenoiser)
    law = torch.full((TOKENS,), 1 / TOKENS, dtype=torch.float64)
    for n in range(steps, 0, -1):
        law = law @ by_hand(chain.denoiser, n, steps, 1)
        x = every_state(1)
        own = chain.law(chain.predict(x, n), x, n)
        columns = [own.log_prob(torch.full((TOKENS, 1), v)).double().exp() for v in range(TOKENS)]
        assert torch.allclose(torch.stack(columns, 1), by_hand(chain.denoiser, n, steps, 1))
    assert torch.allclose(law, data, atol=1e-6)


def every_path() -> tuple[Path, Tensor]:
    """All paths, and the rows of ``every_state`` that they visit."""
    rows = torch.cartesian_prod(*[torch.arange(TOKENS**LENGTH)] * (STEPS + 1))
    return Path(every_state()[rows].movedim(1, 0)), rows


def test_the_ratio_is_that_of_enumerated_paths():
    chain = posterior()
    assert chain.kernel is not None
    path, rows = every_path()
    logs = {}
    for name, denoiser in (("p", chain.denoiser), ("q", chain.kernel.denoiser)):
        steps = [by_hand(denoiser, n, STEPS).log() for n in range(1, STEPS + 1)]
        logs[name] = sum(s[rows[:, n + 1], rows[:, n]] for n, s in enumerate(steps))
    found = log_ratio(chain, path, chunk=4000).detach().double()
    assert torch.allclose(found, logs["q"] - logs["p"], atol=1e-4)
    total = (logs["p"] + found).exp().sum() / TOKENS**LENGTH
    assert torch.allclose(total, torch.ones((), dtype=torch.float64), atol=1e-5)


def test_it_starts_at_the_prior_and_scores_its_own_paths():
    path = rollout(posterior(0.0), 50, StreamNoise(1, range(50)))
    assert torch.equal(path.log_ratio, torch.zeros(50))
    chain = posterior()
    path = rollout(chain, 50, StreamNoise(1, range(50)))
    assert path.log_ratio is not None and float(path.log_ratio.abs().min()) > 0
    assert torch.allclose(path.log_ratio, log_ratio(chain, path, chunk=17), atol=1e-5)
    bare = Path(path.states)
    assert torch.allclose(path.log_ratio, log_ratio(chain, bare), atol=1e-5)


def test_the_divergence_of_a_step_is_its_mean_ratio():
    chain, x = posterior(), every_state()
    for n in range(1, STEPS + 1):
        prediction = chain.predict(x, n)
        tilt = chain.tilt(x, n, prediction)
        assert isinstance(tilt, CategoricalTilt)
        ends = x.repeat(len(x), 1).reshape(len(x), len(x), LENGTH)
        ratios = torch.stack([tilt.log_ratio(ends[:, j]) for j in range(len(x))], 1)
        prior_law = chain.law(prediction, x, n)
        logs = torch.stack([prior_law.log_prob(ends[:, j]) for j in range(len(x))], 1)
        mean = ((ratios + logs).exp() * ratios).sum(1)
        assert torch.allclose(tilt.divergence(), mean, atol=1e-5)
    path = rollout(chain, 20, StreamNoise(1, range(20)))
    assert step_scores(chain, Path(path.states), divergence=True).divergence is not None


def test_the_forward_process_and_its_bridges():
    """Shares within 5 standard errors: false-alarm rate under 1e-4 for all of them."""
    chain, draws = prior(), 20_000
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    x_0 = torch.tensor([0, 2]).expand(draws, -1)
    states = bridge(chain, x_0, noise).states
    assert torch.equal(states[0], x_0)
    n = torch.arange(draws) % STEPS + 1
    x, landed = chain.diffusion.noised_pairs(x_0, n, noise)
    samples = [(states[m], states[m - 1], m) for m in range(1, STEPS + 1)]
    samples += [(x[n == m], landed[n == m], m) for m in range(1, STEPS + 1)]
    for after, before, m in samples:
        a_t, a_s = 1 - m / STEPS, 1 - (m - 1) / STEPS
        for share, chance in (
            ((after == x_0[: len(after)]).double().mean(), a_t + (1 - a_t) / TOKENS),
            ((before == x_0[: len(after)]).double().mean(), a_s + (1 - a_s) / TOKENS),
            ((after == before).double().mean(), a_t / a_s + (1 - a_t / a_s) / TOKENS),
        ):
            error = (chance * (1 - chance) / (len(after) * LENGTH)) ** 0.5
            assert abs(float(share) - chance) <= 5 * error + 1e-12
    again = back_and_forth(chain, x_0[:50], 2, noise)
    assert bool(torch.isfinite(log_ratio(posterior(), again)).all())


def test_a_banned_token_never_ends_a_path_and_leaves_gradients_finite():
    chain = posterior(banned=(1,))
    path = rollout(chain, 500, StreamNoise(1, range(500)))
    assert not bool((path.x_0 == 1).any())
    assert bool((path.states[1:] == 1).any())
    backward(chain, path, torch.randn(500), chunk=300)
    assert chain.kernel is not None
    assert all(bool(torch.isfinite(p.grad).all()) for p in chain.kernel.parameters())
    kept = rollout(chain, 20, ratio="differentiable")
    assert kept.log_ratio is not None
    gradient = torch.autograd.grad(kept.log_ratio.sum(), list(chain.kernel.parameters()))
    assert bool(torch.isfinite(gradient[0]).all()) and float(gradient[0].abs().max()) > 0


@pytest.mark.usefixtures("unchecked")
def test_the_balance_is_reached_where_the_denoiser_is_exact():
    """Its paths are the forward process, of the tilted law too: that is in the kernel's family."""
    data, log_r = torch.tensor([0.5, 0.2, 0.3]).double(), torch.tensor([1.0, -0.5, 0.3])
    chain = chain_of(exact_network(data, STEPS), 1)
    kernel = FullCopy().kernel(chain)
    tilted = chain.tilted(kernel)
    rows = torch.cartesian_prod(*[torch.arange(TOKENS)] * (STEPS + 1))
    path = Path(rows.T[..., None])
    log_z = torch.nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.LBFGS(
        [*kernel.parameters(), log_z], max_iter=300, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (log_z + log_ratio(tilted, path) - log_r[rows[:, 0]]).square().mean()
        value.backward()
        return value

    assert optimiser.step(loss).item() > 0.1
    target = data * log_r.double().exp()
    law = torch.full((TOKENS,), 1 / TOKENS, dtype=torch.float64)
    for n in range(STEPS, 0, -1):
        law = law @ by_hand(kernel.denoiser, n, STEPS, 1)
    assert loss().item() < 1e-6
    assert torch.allclose(law, target / target.sum(), atol=1e-3)
    assert abs(log_z.item() - target.sum().log().item()) < 1e-3


def test_adapters_start_at_the_prior():
    chain = chain_of(Layered())
    tilted = chain.tilted(LoRA(2, targets="all").kernel(chain))
    path = rollout(tilted, 20, StreamNoise(1, range(20)))
    assert torch.equal(path.log_ratio, torch.zeros(20))
    backward(tilted, path, torch.randn(20))


def test_draws_do_not_depend_on_the_batch():
    chain = posterior()
    many = rollout(chain, 9, StreamNoise(3, range(9))).states
    assert torch.equal(rollout(chain, 2, StreamNoise(3, (4, 7))).states, many[:, [4, 7]])


def test_a_canvas_is_refused():
    chain = prior().given(canvas(torch.zeros(1, LENGTH).long(), torch.full((1, LENGTH), GENERATED)))
    with pytest.raises(InputError, match="MaskedDiffusion"):
        rollout(chain, 1)


@pytest.mark.parametrize(("tokens", "steps"), [(1, 4), (4, 0)])
def test_what_is_out_of_range_is_refused(tokens: int, steps: int):
    with pytest.raises(InputError, match="at least 2 tokens and 1 step"):
        UniformDiffusion(tokens, steps)


def test_a_leap_draws_what_the_denoiser_says():
    chain = posterior()
    assert chain.kernel is not None
    x_0, noise = torch.tensor([0, 2]).expand(30, -1), GeneratorNoise(torch.Generator())
    n = torch.arange(30) % STEPS + 1
    leap = chain.leap
    x, landed = leap.diffusion.noised_pairs(x_0, n, noise)
    assert torch.equal(landed, x_0) and not torch.equal(x, x_0)
    prediction = leap.predict(x, n)
    wanted = prediction.gather(2, x_0[..., None]).sum((1, 2))
    assert torch.allclose(leap.law(prediction, x, n).log_prob(x_0), wanted, atol=1e-5)
    assert torch.allclose(leap.diffusion.denoising_loss(prediction, x_0, x, n), -wanted)
    assert torch.equal(chain.clean(prediction, x[:10], 2), chain.predict(x[:10], 2).argmax(2))
    tilt = leap.tilt(x, n, prediction)
    assert isinstance(tilt, CategoricalTilt)
    own = chain.kernel.denoiser(x, chain.diffusion.level(n, x))
    difference = (own - prediction).gather(2, x_0[..., None]).sum((1, 2))
    assert torch.allclose(tilt.log_ratio(x_0), difference, atol=1e-5)


def test_ends_for_denoising_are_noised_at_once():
    """Shares within 5 standard errors: false-alarm rate under 1e-5."""
    x_0, draws = torch.tensor([0, 2]).expand(9_000, -1), 3_000
    n = torch.arange(9_000) % STEPS + 1
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    x, wanted = prior().diffusion.denoising_pair(x_0, n, noise)
    assert torch.equal(wanted, x_0)
    for m in range(1, STEPS + 1):
        chance = 1 - m / STEPS + m / STEPS / TOKENS
        error = (chance * (1 - chance) / (draws * LENGTH)) ** 0.5
        assert abs(float((x == x_0)[n == m].double().mean()) - chance) <= 5 * error
