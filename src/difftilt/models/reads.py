"""What a network may read of a condition, and how to tell it from conditions that were drawn."""

from collections.abc import Sequence

from torch import Tensor

from difftilt.errors import InputError
from difftilt.models.labels import Labels
from difftilt.models.numbers import Numbers

Reads = Labels | Numbers


def reads_of(conditions: Tensor, labels: int | Sequence[int] = 0) -> Reads:
    """The reading that suits conditions like these.

    Arguments:
        conditions: (n, K) numbers or integer labels, or (n,) of a single label each.
        labels: how many values the labels have: one number for all of them, or one for each.

    Raises:
        InputError: numbers of another shape, labels of unknown sizes, or another number of sizes.
    """
    if conditions.is_floating_point():
        if conditions.ndim != 2:
            raise InputError(
                "a learned log Z or log h reads conditions of shape (B, K), got "
                f"{tuple(conditions.shape)}; flatten them, or use RTB('batch'), which needs none"
            )
        spread, centre = conditions.double().std(0, correction=0), conditions.double().mean(0)
        spread = spread.where(spread > 0, 1.0)
        return Numbers(tuple(spread.tolist()), centres=tuple(centre.tolist()))
    count = 1 if conditions.ndim == 1 else conditions.shape[-1]
    sizes = (labels,) * count if isinstance(labels, int) else tuple(labels)
    if conditions.ndim > 2 or len(sizes) != count or not all(size > 0 for size in sizes):
        raise InputError(
            f"integer conditions of shape {tuple(conditions.shape)} need Sources(labels=...), the "
            f"number of values of each of {count} labels, and it says {labels}; or use "
            "RTB('batch'), which learns no log Z"
        )
    return Labels(sizes)
