"""How near fillings are to the true middle in meaning: BERTScore's formula on contextual features.

Each generated token is matched with the token of the true middle whose features are nearest by
cosine, and the other way round; F1 of the two means. Features are those of the prior's own network,
which reads each filling inside its whole story. Features of one network all point the same way more
or less, so that unrelated sentences score high: as in BERTScore, F1 is rescaled by a baseline, here
the mean F1 of the true middles of *different* stories, each read in its own. 1: equal; 0: as near
as a middle of another story.

Source: Zhang et al. 2020, equations 2 to 4 and section 3 (arXiv 1904.09675).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.diffusions.masked import GENERATED
from difftilt.errors import InputError
from difftilt.tasks.text_metrics import matching
from difftilt.token_denoisers import TokenNetwork

CHUNK = 64


def story_similarity(
    network: TokenNetwork, ids: Int[Tensor, "S L"], truth: Int[Tensor, "C 2 L"]
) -> Float[Tensor, "C rounds"]:
    """Rescaled F1 of complete canvases with the true middles.

    Arguments:
        network: whose features are compared.
        ids: complete canvases, the contexts in turn.
        truth: canvases whose tokens hold the true middles.

    Raises:
        InputError: a single context, which has no other to take the baseline from.
    """
    contexts = len(truth)
    if contexts < 2:
        raise InputError("the similarity's baseline needs two contexts or more")
    wanted = _features(network, truth[:, 0], truth)
    apart = [matching(wanted[c], wanted[(c + 1) % contexts]) for c in range(contexts)]
    baseline = sum(apart) / contexts
    rounds = [
        [matching(f, w) for f, w in zip(_features(network, part, truth), wanted, strict=True)]
        for part in ids[: len(ids) // contexts * contexts].split(contexts)
    ]
    return (torch.tensor(rounds).T - baseline) / (1 - baseline)


@torch.no_grad()
def _features(
    network: TokenNetwork, ids: Int[Tensor, "C L"], truth: Int[Tensor, "C 2 L"]
) -> Sequence[Float[Tensor, "T d"]]:
    """Features of the generated positions of each canvas."""
    parts = [network.hidden(part, torch.zeros(len(part))) for part in ids.split(CHUNK)]
    generated = truth[:, 1] == GENERATED
    return [row[mask] for row, mask in zip(torch.cat(parts), generated, strict=True)]
