"""The law of a template is what it is alone, whatever templates share its list."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import difftilt
from difftilt.adapters.text.ddit_network import DDiTNetwork
from difftilt.adapters.text.sedd import sedd
from difftilt.diffusions.masked import GENERATED, PADDING, SUFFIX, canvas
from difftilt.diffusions.orders import (
    AnyOrder,
    LeastEntropy,
    LeftToRight,
    Order,
    Parallel,
    Stepwise,
)
from difftilt.errors import InputError
from difftilt.infilling import Infilling
from difftilt.marginals import marginal_log_prob
from difftilt.tasks.shipped import shipped_folder
from difftilt.text_priors import TextPrior, text_prior
from difftilt.token_denoisers import TokenDenoiser
from tiny_text import byte_tokenizer
from tiny_text_models import spread

TEMPLATE = "they came to the city. [2] and they drank."
LONGER = "and the king said to them, behold, the people [5] and they went up to the mountain."
SHORTER = "they came [3] and drank."


def nothing(texts: list[str]) -> list[float]:
    return [0.0] * len(texts)


def sedd_prior(order: Order | None = None) -> TextPrior:
    """A tiny SEDD of bytes: it is told the time, and no id of it is a pad."""
    tokenizer = byte_tokenizer()
    size = {"hidden_size": 16, "n_heads": 2, "n_blocks": 2, "cond_dim": 8, "length": 96}
    config = {"graph": {"type": "absorb"}, "tokens": len(tokenizer), "model": size}
    return text_prior(spread(DDiTNetwork(sedd(config))), tokenizer, order)


def shipped_prior(order: Order | None = None) -> TextPrior:
    """BERT, to which a pad is a word."""
    return TextPrior(difftilt.load(shipped_folder("text_prior")).model, order)


PRIORS: dict[str, Callable[..., TextPrior]] = {"sedd": sedd_prior, "shipped": shipped_prior}


def filled(task: Infilling, filling: str, context: int) -> tuple[Tensor, Tensor]:
    """A completion of a template as the chain writes it, and its canvas."""
    condition, _ = task.canvases.of(context)
    tokens, roles = condition.unbind(1)
    slot = torch.tensor(task.canvases.codec.ids(filling))
    x_0 = tokens.masked_scatter(roles == GENERATED, slot)
    vocab_size = task.target.prior.chain.denoiser.vocab_size
    return torch.where(roles == SUFFIX, vocab_size, x_0), condition


def log_probs(prior: TextPrior, templates: list[str], informed: bool = False) -> list[float]:
    """``log p`` of two fillings of the first template, by prior or posterior, over all orders."""
    task = prior.infill(templates, nothing)
    chain = task.prompted().posterior.chain if informed else task.target.prior.chain
    fillings = ("wa", "xy") if prior.model.network.vocab_size < 300 else (" the water", " in peace")
    return [float(marginal_log_prob(chain, *filled(task, f, 0))) for f in fillings]


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("informed", [False, True])
def test_other_templates_do_not_change_a_law(name: str, informed: bool):
    prior = PRIORS[name]()
    alone = log_probs(prior, [TEMPLATE], informed)
    assert abs(alone[0] - alone[1]) > 0.1
    for others in ([LONGER], [SHORTER], [LONGER, SHORTER]):
        assert log_probs(prior, [TEMPLATE, *others], informed) == pytest.approx(alone, abs=1e-4)


def test_nor_does_a_longer_slot_on_a_canvas_of_one_length():
    # Nothing is padded here: the networks are told the share of their own canvas's masks.
    prior = sedd_prior()
    same = TEMPLATE.replace("city. [2]", "ci [5]")
    assert len(prior.infill([TEMPLATE, same], nothing).canvases.conditions.unique(dim=0)) == 2
    assert PADDING not in prior.infill([TEMPLATE, same], nothing).canvases.conditions[:, 1]
    together = log_probs(prior, [TEMPLATE, same])
    assert together == pytest.approx(log_probs(prior, [TEMPLATE]), abs=1e-5)


@pytest.mark.parametrize("kind", [Stepwise, LeftToRight, "surest"])
def test_nor_under_another_order(kind: type[Order] | str):
    prior = sedd_prior()
    if isinstance(kind, str):
        order: Order = LeastEntropy(TokenDenoiser(prior.model.network))
    else:
        order = kind()
    prior = TextPrior(prior.model, order)
    alone = log_probs(prior, [TEMPLATE])
    assert log_probs(prior, [TEMPLATE, LONGER]) == pytest.approx(alone, abs=1e-4)


def test_a_learned_order_reads_no_neighbour():
    torch.manual_seed(0)
    prior = TextPrior(sedd_prior().model, Stepwise())
    found = []
    for templates in ([TEMPLATE], [TEMPLATE, LONGER]):
        task = prior.infill(templates, nothing)
        posterior = task.posterior(difftilt.FullCopy(learned_order=True)).posterior
        for parameter in posterior.chain.kernel.head.parameters():
            parameter.data += torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)
        found.append(float(marginal_log_prob(posterior.chain, *filled(task, "wa", 0))))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize("name", PRIORS)
def test_a_draw_depends_on_the_number_of_draws_in_no_way(name: str):
    task = PRIORS[name]().infill([TEMPLATE, LONGER, SHORTER], nothing)
    few, many = task.prior_samples(3, 0, seed=5), task.prior_samples(12, 0, seed=5)
    assert [c.text for c in few] == [c.text for c in many[:3]]


def test_a_posterior_of_several_lengths_starts_at_its_own_law():
    task = sedd_prior().infill([TEMPLATE, LONGER, SHORTER], nothing, suffix="none")
    completions = task.posterior().completions(8, 1) + task.posterior().completions(8, 2)
    assert [c.log_w for c in completions] == [0.0] * 16
    posterior = task.fit(steps=2, batch=8, warm_start=0.0, chunk=16)
    assert any(c.log_w for c in posterior.completions(8, 2))


@pytest.mark.parametrize(
    ("order", "times"),
    [
        (AnyOrder(), [1.0, 0.5]),
        (AnyOrder(2), [1.0, 1.0]),
        (Stepwise(), [1.0, 0.5]),
        (Parallel(8), [0.5, 0.125]),
    ],
)
def test_times_are_shares_of_a_canvas_s_own_masks(order: Order, times: list[float]):
    assert order.time(torch.tensor([4, 1]), torch.tensor([3, 2])).tolist() == times


def test_padding_stands_at_the_end():
    with pytest.raises(InputError, match=r"padding \(role 3\) stands at the end of a canvas"):
        canvas(torch.zeros(1, 3, dtype=torch.long), torch.tensor([[1, PADDING, 0]]))
