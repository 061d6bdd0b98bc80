"""Tokens masked again: the published kernel, its levels, and the ratio as a sum over events."""

import itertools

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.chains.rollouts import back_and_forth, bridge, rollout
from difftilt.chains.scoring import log_ratio
from difftilt.diffusions.masked import GENERATED, canvas
from difftilt.diffusions.orders import Parallel
from difftilt.diffusions.remasking import Loop, Remasking
from difftilt.errors import InputError
from difftilt.forms import FullCopy
from difftilt.noise import GeneratorNoise, StreamNoise
from token_chains import LENGTH, TOKENS, Table, arbitrary, every_end, masked_chain, place_of

RULES = {
    "largest": Remasking(4),
    "capped": Remasking(4, cap=0.3),
    "rescaled": Remasking(4, rescale=0.5),
    "loop": Remasking(10, rescale=0.5, loop=Loop(0.7, 0.2, 0.8)),
    "never": Remasking(4, cap=0.0),
}
LOOPS = [Loop(), Loop(0.5, 0.0, 0.6), Loop(0.75, 0.25, 0.9)]


def posterior(order: Remasking, moved: float = 0.7) -> Chain:
    chain = masked_chain(arbitrary(), order)
    kernel = FullCopy().kernel(chain)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += moved * torch.randn(parameter.shape)
    return chain.tilted(kernel)


@pytest.mark.parametrize("order", [*RULES.values(), *(Remasking(20, loop=loop) for loop in LOOPS)])
def test_every_level_has_its_share_of_tokens(order: Remasking):
    """alpha_s = alpha_t (1 - sigma) + (1 - alpha_t) reveal, from nothing to all tokens."""
    alpha, sigma, reveal = order.alpha, order.sigma[1:], order.reveal[1:]
    assert (alpha[0], alpha[-1], sigma[0], reveal[0]) == (1, 0, 0, 1)
    assert bool((sigma >= 0).all() and (sigma <= 1).all())
    assert bool((reveal >= 0).all() and (reveal <= 1).all())
    assert torch.allclose(alpha[1:] * (1 - sigma) + (1 - alpha[1:]) * reveal, alpha[:-1])
    assert bool((alpha.diff() <= 0).all())


def test_the_rules_of_the_paper():
    largest = ((1 - RULES["largest"].alpha[:-1]) / RULES["largest"].alpha[1:]).clamp(max=1)
    assert torch.equal(RULES["largest"].sigma[1:], largest)
    assert torch.equal(RULES["capped"].sigma[1:], largest.clamp(max=0.3))
    assert torch.equal(RULES["rescaled"].sigma[1:], 0.5 * largest)
    loop = RULES["loop"]
    assert loop.alpha[2:8].tolist() == [0.8] * 6
    assert torch.equal(loop.sigma.nonzero().flatten(), torch.arange(3, 8))
    assert torch.allclose(loop.sigma[3:8], torch.tensor(0.5 * 0.2 / 0.8, dtype=torch.float64))


def published_law(table: Table, order: Remasking) -> Tensor:
    """The law of x_0 from the kernel of the paper, over all (V + 1)^L states."""
    mask = TOKENS
    states = torch.tensor(list(itertools.product(range(TOKENS + 1), repeat=LENGTH)))
    logits = table.hidden(states, torch.zeros(len(states)))[..., :TOKENS].detach().double()
    pi = torch.softmax(logits, 2)
    law = (states == mask).all(1).double()
    for t in range(order.count, 0, -1):
        a_t, a_s, sigma = order.alpha[t], order.alpha[t - 1], order.sigma[t]
        step = torch.ones(len(states), len(states), dtype=torch.float64)
        for i in range(LENGTH):
            before, after = states[:, None, i], states[None, :, i]
            token = pi[:, i].gather(1, after.clamp(max=TOKENS - 1).expand(len(states), -1))
            stay = (1 - a_s - sigma * a_t) / (1 - a_t)
            drawn = (a_s - (1 - sigma) * a_t) / (1 - a_t) * token
            of_mask = torch.where(after == mask, stay, drawn)
            of_token = torch.where(after == mask, sigma, (1 - sigma) * (after == before))
            step *= torch.where(before == mask, of_mask, of_token)
        assert torch.allclose(step.sum(1), torch.ones(len(states), dtype=torch.float64))
        law = law @ step
    ends = (states != mask).all(1)
    assert torch.allclose(law[~ends], torch.zeros(int((~ends).sum()), dtype=torch.float64))
    return law[ends]


@pytest.mark.parametrize("rule", RULES)
def test_the_chain_has_the_published_law(rule: str):
    """False-alarm rate under 1e-20 (McDiarmid: the total variation is 2 means above its mean)."""
    table, draws = arbitrary(), 30_000
    law = published_law(table, RULES[rule])
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    drawn = rollout(masked_chain(table, RULES[rule]), draws, noise, record=False)
    seen = torch.bincount(place_of(drawn.x_0), minlength=len(law)) / draws
    assert float((seen - law).abs().sum() / 2) < 1.5 * (len(law) / draws) ** 0.5


def test_remasking_matters_and_without_it_the_law_is_that_of_independent_steps():
    table, draws = arbitrary(), 30_000
    law, other = published_law(table, RULES["never"]), published_law(table, RULES["largest"])
    assert float((law - other).abs().sum() / 2) > 0.03
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    drawn = rollout(masked_chain(table, Parallel(4)), draws, noise, record=False)
    seen = torch.bincount(place_of(drawn.x_0), minlength=len(law)) / draws
    assert float((seen - law).abs().sum() / 2) < 1.5 * (len(law) / draws) ** 0.5


def events(chain: Chain, path: Path) -> tuple[Tensor, Tensor]:
    """``log q - log p`` summed over all reveal events, and their number, from the tables alone."""
    assert chain.kernel is not None
    tables = chain.kernel.denoiser.network, chain.denoiser.network
    total, count = torch.zeros(path.batch).double(), torch.zeros(path.batch)
    for n in range(1, chain.steps + 1):
        x, landed = path.states[n], path.states[n - 1]
        ids = torch.where(x < 0, -1 - x, x).clamp(max=TOKENS)
        token = torch.where(landed < 0, -1 - landed, landed).clamp(max=TOKENS - 1)[..., None]
        logs = [t.hidden(ids, torch.zeros(len(x)))[..., :TOKENS].detach() for t in tables]
        q, p = (log.double().log_softmax(2).gather(2, token)[..., 0] for log in logs)
        total += torch.where(x == TOKENS + n, q - p, 0).sum(1)
        count += (x == TOKENS + n).sum(1)
    return total, count


@pytest.mark.parametrize("rule", ["largest", "loop"])
def test_the_ratio_is_the_sum_over_events(rule: str):
    chain = posterior(RULES[rule])
    path = rollout(chain, 200, StreamNoise(1, range(200)))
    wanted, count = events(chain, path)
    assert path.log_ratio is not None
    assert torch.allclose(path.log_ratio.double(), wanted, atol=1e-5)
    assert torch.allclose(log_ratio(chain, path, chunk=64).double(), wanted, atol=1e-5)
    # Some positions are revealed more than once, and each event counts.
    assert int(count.min()) == LENGTH < int(count.max())
    start = posterior(RULES[rule], moved=0.0)
    assert torch.equal(rollout(start, 50).log_ratio, torch.zeros(50))


@pytest.mark.parametrize("rule", ["largest", "loop"])
def test_a_bridge_masks_each_level_as_the_chain_does(rule: str):
    """Shares of masks within 5 standard errors at each level: false-alarm rate under 1e-5."""
    order = RULES[rule]
    chain, draws = posterior(order), 20_000
    ends = every_end()[torch.randint(0, TOKENS**LENGTH, (draws,))]
    states = bridge(chain, ends, GeneratorNoise(torch.Generator().manual_seed(1))).states
    assert torch.equal(states[0], ends)
    for n in range(1, order.count + 1):
        read = torch.where(states[n] < 0, -1 - states[n], states[n])
        shown = read < TOKENS
        assert torch.equal(read[shown], ends[shown])
        alpha = float(order.alpha[n])
        error = (alpha * (1 - alpha) / shown.numel()) ** 0.5
        assert abs(float(shown.double().mean()) - alpha) <= 5 * error


def test_scores_of_bridges_pairs_and_returns():
    chain = posterior(RULES["largest"])
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    for path in (bridge(chain, every_end(), noise), back_and_forth(chain, every_end(), 2, noise)):
        assert bool(((path.x_0 >= 0) & (path.x_0 < TOKENS)).all())
        assert torch.allclose(log_ratio(chain, path).double(), events(chain, path)[0], atol=1e-5)
    n = torch.arange(27) % 4 + 1
    x, landed = chain.diffusion.noised_pairs(every_end(), n, noise)
    marked = x == TOKENS + n[:, None]
    assert bool(marked.any())
    assert torch.equal(torch.where(landed < 0, -1 - landed, landed)[marked], every_end()[marked])


def test_given_positions_are_never_masked():
    chain = posterior(RULES["largest"])
    roles = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 2], [0, 0, 0]]).repeat(10, 1)
    tokens = torch.randint(0, TOKENS, roles.shape)
    path = rollout(chain.given(canvas(tokens, roles)), 40, StreamNoise(1, range(40)))
    fixed = roles != GENERATED
    shown = torch.where(roles == 2, TOKENS, tokens)[fixed]
    assert torch.equal(path.states[:, fixed], shown.expand(5, -1))
    assert bool((path.states < 0).any())
    assert path.log_ratio is not None and float(path.log_ratio[3]) == 0.0


def test_draws_do_not_depend_on_the_batch():
    chain = posterior(RULES["loop"])
    many = rollout(chain, 9, StreamNoise(3, range(9))).states
    assert torch.equal(rollout(chain, 2, StreamNoise(3, (4, 7))).states, many[:, [4, 7]])


def test_networks_are_told_the_share_of_masks():
    chain = masked_chain(arbitrary(), RULES["loop"])
    x = chain.base(2).at(torch.full((2, LENGTH), 11))
    assert chain.diffusion.level(5, x).time.tolist() == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("wrong", [{"count": 0}, {"cap": 1.5}, {"rescale": -0.1}])
def test_what_is_out_of_range_is_refused(wrong: dict):
    with pytest.raises(InputError, match="remasking wants"):
        Remasking(**wrong)


def test_a_loop_that_ends_before_it_starts_is_refused():
    with pytest.raises(InputError, match="end < start"):
        Loop(0.2, 0.5)


def test_a_leap_reveals_every_mask_and_forgets_none():
    chain = posterior(RULES["largest"]).leap
    n = torch.arange(27) % 4 + 1
    x, landed = chain.diffusion.noised_pairs(every_end(), n, GeneratorNoise(torch.Generator()))
    assert torch.equal(landed, every_end())
    assert bool((x < 0).any() and (x > TOKENS).any())
    reveal = chain.diffusion.reveal(n, x)
    assert torch.equal(reveal.valid.sum(1), (x > TOKENS).sum(1))
    guess = chain.diffusion.clean(chain.predict(x, n), x, n)
    shown = x < TOKENS
    assert bool(((guess >= 0) & (guess < TOKENS)).all())
    assert torch.equal(guess[shown], every_end()[shown])
