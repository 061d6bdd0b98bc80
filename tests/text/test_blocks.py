"""BD3-LM, which reads in blocks: its own order, and the suffixes that it cannot see."""

import math
import warnings
from pathlib import Path

import pytest
import torch

import difftilt
from difftilt.diffusions.masked import GENERATED
from difftilt.diffusions.orders import AnyOrder, Blocks, LeftToRight, Parallel
from difftilt.errors import InputError
from difftilt.marginals import marginal_log_prob
from difftilt.text_priors import TextPrior
from tiny_text import byte_tokenizer
from tiny_text_models import ddit_folder

ACROSS = "abc[3]"
"""A slot of which one position lies in the first block of 4, and two in the second."""


@pytest.fixture
def prior(tmp_path: Path) -> TextPrior:
    return difftilt.load(ddit_folder(tmp_path / "bd3lm", 257, "bd3lm"), tokenizer=byte_tokenizer())


def nothing(texts: list[str]) -> list[float]:
    return [0.0] * len(texts)


@torch.no_grad()
def log_p(prior: TextPrior, seen: list[int | None], place: int, token: int) -> float:
    """``log p`` of a token at a place, from the network itself; None is a mask."""
    network = prior.model.network
    ids = torch.tensor([[network.mask_id if i is None else i for i in seen]])
    logits = network.logits(network.hidden(ids, torch.ones(1)))[0, place].double()
    logits[[network.mask_id, prior.model.tokenizer.eos_token_id]] = -math.inf
    return float(logits.log_softmax(0)[token])


def marginal(prior: TextPrior, filling: list[int]) -> float:
    task = prior.infill(ACROSS, nothing)
    condition, _ = task.canvases.of(0)
    tokens, roles = condition.unbind(1)
    x_0 = tokens.masked_scatter(roles == GENERATED, torch.tensor(filling))
    return float(marginal_log_prob(task.target.prior.chain, x_0, condition))


def test_blocks_are_finished_from_left_to_right(prior: TextPrior):
    a, b, c, u, v, w = byte_tokenizer()("abcuvw")["input_ids"]
    seen: list[int | None] = [a, b, c, u]
    first = log_p(prior, [a, b, c, None, None, None], 3, u)
    forth = log_p(prior, [*seen, None, None], 4, v) + log_p(prior, [*seen, v, None], 5, w)
    back = log_p(prior, [*seen, None, None], 5, w) + log_p(prior, [*seen, None, w], 4, v)
    wanted = first + math.log(0.5 * math.exp(forth) + 0.5 * math.exp(back))
    assert marginal(prior, [u, v, w]) == pytest.approx(wanted, abs=1e-4)
    with pytest.warns(UserWarning, match="may reveal a block before"):
        counted = marginal(TextPrior(prior.model, Blocks(size=4)), [u, v, w])
    assert abs(counted - wanted) > 0.01


def test_orders_that_leap_ahead_are_named(prior: TextPrior):
    for order in (AnyOrder(), Blocks(size=4), Blocks(size=8, aligned=True), Parallel(2)):
        with pytest.warns(UserWarning, match=r"blocks of 4 positions .* use Blocks\(.*size=4, al"):
            TextPrior(prior.model, order).infill(ACROSS, nothing)
    for order in (None, LeftToRight(), Blocks(size=4, aligned=True)):
        TextPrior(prior.model, order).infill(ACROSS, nothing)


def test_a_suffix_behind_the_last_block_is_said_to_be_hidden(prior: TextPrior):
    hidden = ["abc[1]def", "abc[3]defg"]
    for template, end in zip(hidden, (4, 8), strict=True):
        with pytest.warns(
            UserWarning, match=f"not shown .* template 0 goes on behind position {end}"
        ):
            task = prior.infill(template, nothing)
        with pytest.warns(UserWarning, match="not shown the whole suffix"):
            prior.infill(task.canvases.conditions, nothing)
        with pytest.raises(
            InputError, match=f"suffix='both' hides .* behind position {end}; leave"
        ):
            prior.infill(template, nothing, suffix="both")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior.infill("abc[3]de", nothing)
        prior.infill("abc[3]de", nothing, suffix="both")
        prior.infill(hidden[0], nothing, suffix="none")


def test_what_is_said_to_be_hidden_is(prior: TextPrior):
    with pytest.warns(UserWarning, match="not shown the whole suffix"):
        task = prior.infill(["abc[1]def", "abc[1]xyz"], nothing)
    same = [[c.fillings for c in task.prompted().completions(30, i, seed=1)] for i in (0, 1)]
    assert same[0] == same[1]
    task = prior.infill(["abc[3]de", "abc[3]xy"], nothing)
    other = [[c.fillings for c in task.prompted().completions(30, i, seed=1)] for i in (0, 1)]
    assert other[0] != other[1]
