"""A learned temperature: the prior at the start, the same densities everywhere, exact for p^s."""

import pytest
import torch

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import backward, log_ratio
from difftilt.diffusions.orders import AnyOrder, Stepwise
from difftilt.errors import InputError
from difftilt.forms import FullCopy, LoRA
from difftilt.noise import StreamNoise
from difftilt.training.plan import Optimisation
from difftilt.training.state import LogPartition, head_parameters, optimisers
from token_chains import (
    LENGTH,
    TOKENS,
    Linear,
    consistent,
    end_law,
    every_path,
    masked_chain,
    permutations,
    place_of,
)

FORMS = [
    FullCopy(learned_temperature=True),
    FullCopy(learned_temperature=True, learned_order=True),
    LoRA(2, targets="all", learned_temperature=True),
]


def posterior(form: FullCopy | LoRA, moved: float = 0.0) -> Chain:
    ordered = form.learned_order
    prior = masked_chain(Linear(), Stepwise() if ordered else AnyOrder())
    chain = prior.tilted(form.kernel(prior))
    with torch.no_grad():
        for parameter in chain.kernel.parameters():
            parameter += moved * torch.randn(parameter.shape)
    return chain


@pytest.mark.parametrize("form", FORMS)
def test_it_starts_at_the_prior_and_scores_what_it_draws(form: FullCopy | LoRA):
    path = rollout(posterior(form), 30, StreamNoise(1, range(30)))
    assert torch.equal(path.log_ratio, torch.zeros(30))
    chain = posterior(form, moved=0.5)
    path = rollout(chain, 30, StreamNoise(1, range(30)))
    assert path.log_ratio is not None and float(path.log_ratio.abs().min()) > 0
    assert torch.allclose(path.log_ratio, log_ratio(chain, path, chunk=7), atol=1e-5)
    backward(chain, path, torch.randn(30), chunk=7)
    assert all(float(p.grad.abs().max()) > 0 for p in head_parameters(chain.kernel))


def test_adapters_with_a_temperature_leave_the_prior_as_it_is():
    prior = masked_chain(Linear(), AnyOrder())
    before = rollout(prior, 20, StreamNoise(5, range(20)))
    kernel = FORMS[2].kernel(prior)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.5 * torch.randn(parameter.shape)
    rollout(prior.tilted(kernel), 20, StreamNoise(1, range(20)))
    assert torch.equal(rollout(prior, 20, StreamNoise(5, range(20))).states, before.states)


def test_a_constant_head_is_a_temperature():
    """Logits times 2: the law of every hidden position is squared and normalised."""
    chain = posterior(FORMS[0])
    path = every_path(chain)
    with torch.no_grad():
        head_parameters(chain.kernel)[1].fill_(2.0).log_()
    for n in (1, LENGTH):
        x = path.states[n]
        prediction = chain.predict(x, n)
        squared = (2 * prediction).log_softmax(-1)
        assert torch.allclose(chain.tilt(x, n, prediction).log_probs, squared, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_a_head_alone_reaches_a_target_that_is_only_surer():
    """``r = p(x)`` squares the law of a prior whose tokens are independent: TV below 1e-4."""
    joint = torch.randn(LENGTH, TOKENS).double().softmax(1)
    prior = masked_chain(consistent(torch.einsum("a,b,c->abc", *joint)), AnyOrder())
    chain, paths = prior.tilted(FORMS[0].kernel(prior)), every_path(prior)
    first = TOKENS + permutations()
    law = end_law(prior, first)
    target = law.square() / law.square().sum()
    heads = head_parameters(chain.kernel)
    log_z = torch.nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.LBFGS([*heads, log_z], max_iter=300, line_search_fn="strong_wolfe")
    wanted = law.log().float()[place_of(paths.x_0)]

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = (log_z + log_ratio(chain, paths) - wanted).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    assert float((law - target).abs().sum() / 2) > 0.1
    assert float((end_law(chain, first) - target).abs().sum() / 2) < 1e-4


def test_heads_may_have_a_learning_rate_of_their_own():
    chain = posterior(FORMS[1])
    heads = head_parameters(chain.kernel)
    assert len(heads) == 3
    plan = Optimisation(learning_rate=1e-4, hidden_learning_rate=0.01, head_learning_rate=3e-3)
    found = [
        group for made in optimisers(chain, LogPartition(), plan) for group in made.param_groups
    ]
    rates = {id(p): group["lr"] for group in found for p in group["params"]}
    assert [rates[id(p)] for p in heads] == [3e-3] * 3
    assert sum(rates[id(p)] == 1e-4 for p in chain.kernel.parameters()) >= 2
    assert len(rates) == sum(len(group["params"]) for group in found)


def test_another_state_space_is_refused():
    from toys import gaussian_chain

    with pytest.raises(InputError, match="learned temperature needs a prior of tokens"):
        FORMS[0].kernel(gaussian_chain())
