"""How likely a masked language model finds text: the any-order bound, as a loss and as a figure.

A masked model that reveals the n open positions of a sequence in a random order has

    log p(x) >= E_{k ~ U{1..n}} E_{S, |S| = k} [ (n / k) Σ_{i in S} log p(x_i | x outside S) ]

with S a uniform subset of the open positions. Its negative is the training loss of masked diffusion
with a log-linear schedule, where k is drawn first and evenly (the k's of a batch are stratified);
with everything open it bounds a whole sequence, with a few positions open it bounds an infilling.

Sources: Ou et al. 2024 (arXiv 2406.03736), eq. 3.11; Uria et al. 2014 (arXiv 1310.1757).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from difftilt.errors import InputError


def stratified(count: int, generator: torch.Generator | None = None) -> Float[Tensor, " count"]:
    """Uniforms, one in each of ``count`` equal cells of [0, 1), in random order."""
    cell = torch.randperm(count, generator=generator)
    return (cell + torch.rand(count, generator=generator, dtype=torch.float64)) / count


def drawn_masks(
    open_positions: Bool[Tensor, "B L"],
    uniforms: Float[Tensor, " B"],
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B L"]:
    """k of a sample's n open positions, k = 1 + floor(u n).

    Raises:
        InputError: a sample has no open position.
    """
    count = open_positions.sum(1)
    if not bool(count.all()):
        raise InputError("a sequence has no open position; leave out those with nothing to predict")
    size = (uniforms * count).long().clamp(max=count - 1) + 1
    keys = torch.rand(open_positions.shape, generator=generator)
    rank = keys.masked_fill(~open_positions, 2.0).argsort(1).argsort(1)
    return rank < size[:, None]


def masked_log_likelihood(
    model: Any, ids: Int[Tensor, "B L"], masks: Bool[Tensor, "B L"], mask_id: int
) -> Float[Tensor, " B"]:
    """Σ log p(x_i | the rest) over the masked positions, each on its own.

    Arguments:
        model: a masked language model of BERT's kind (``base_model`` and ``cls``).
        mask_id: its id of a mask, which gets no probability.
    """
    hidden = model.base_model(input_ids=ids.masked_fill(masks, mask_id)).last_hidden_state
    logits = model.cls(hidden[masks]).float()
    logits = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
    terms = -F.cross_entropy(logits, ids[masks], reduction="none")
    return torch.zeros(len(ids)).index_add(0, masks.nonzero()[:, 0], terms)


def any_order_terms(
    model: Any,
    ids: Int[Tensor, "B L"],
    open_positions: Bool[Tensor, "B L"],
    mask_id: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " B"]:
    """One unbiased draw of the bound per sequence, nats; the k's are stratified over the batch."""
    uniforms = stratified(len(ids), generator)
    masks = drawn_masks(open_positions, uniforms, generator)
    weight = open_positions.sum(1) / masks.sum(1)
    return weight * masked_log_likelihood(model, ids, masks, mask_id)


@torch.no_grad()
def elbo(
    model: Any,
    ids: Int[Tensor, "B L"],
    open_positions: Bool[Tensor, "B L"],
    mask_id: int,
    draws: int = 16,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " B"]:
    """The any-order bound on ``log p(open positions | the others)``, nats, by stratified draws.

    Arguments:
        model: a masked language model of BERT's kind.
        ids: tokens, without masks.
        open_positions: what is predicted; n of them.
        draws: masks per sequence; with draws >= n every k comes about equally often.

    Raises:
        InputError: no draws, or a sequence has no open position.
    """
    if draws < 1:
        raise InputError(f"draws={draws} must be at least 1")
    total = torch.zeros(len(ids))
    for row in range(len(ids)):
        copies = (ids[row].expand(draws, -1), open_positions[row].expand(draws, -1))
        total[row] = any_order_terms(model, *copies, mask_id, generator).mean()
    return total
