"""Networks that read in blocks (BD3-LM): the order that suits them, and what they cannot see.

A position of such a network sees its own block and the blocks before it. So the blocks have to be
filled from left to right, and of a suffix only what lies in the last slot's own block is seen.
"""

import warnings

from difftilt.diffusions.masked import SUFFIX
from difftilt.diffusions.orders import Blocks, LeftToRight, Order
from difftilt.errors import InputError
from difftilt.text.canvases import Canvases
from difftilt.text.layouts import Layout, SuffixUse


def order_of(order: Order | None, size: int) -> Order:
    """The given order, or the blocks of the network; warns of one that leaps ahead of them.

    Arguments:
        order: the user's, or None.
        size: positions per block of the network.
    """
    own = Blocks(size=size, aligned=True)
    if order is not None and order != own and order != LeftToRight():
        warnings.warn(
            f"{order} may reveal a block before those in front of it, but the network was trained "
            f"to read blocks of {size} positions from left to right; use {own}",
            stacklevel=4,
        )
    return own if order is None else order


def check_sight(canvases: Canvases, suffix: SuffixUse | None, size: int) -> None:
    """Say where a suffix lies behind the last block that the slots see.

    Arguments:
        canvases: of all templates.
        suffix: what the user asked for; given canvases have roles alone.
        size: positions per block of the network.

    Raises:
        InputError: a prior that cannot see the suffix is asked to.
    """
    closing = len(canvases.codec.closing)
    for layout in canvases.layouts:
        sight = _sight(layout, size)
        why = (
            f"each position sees its own block of {size} and those before it, and the suffix of "
            f"template {layout.context} goes on behind position {sight}"
        )
        if suffix == "both" and len(layout.tokens) - closing > sight:
            raise InputError(f"suffix='both' hides the suffix: {why}; leave it to the posterior")
        if SUFFIX in layout.roles[sight:]:
            warnings.warn(
                f"the posterior is not shown the whole suffix: {why}; the reward alone tells it "
                "of the rest",
                stacklevel=3,
            )
            return


def _sight(layout: Layout, size: int) -> int:
    """The end of the last slot's last block."""
    last = layout.places[-1].stop - 1
    return (last // size + 1) * size
