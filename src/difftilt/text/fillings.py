"""True fillings of templates, as data to train on."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from difftilt.errors import InputError
from difftilt.text.canvases import Canvases
from difftilt.text.layouts import Layout

Filling = str | Sequence[str]
"""What the slot of a template holds, or each of its slots."""


def filled_in(
    canvases: Canvases, data: Sequence[Sequence[Filling]]
) -> tuple[Int[Tensor, "n L"], Int[Tensor, "n 2 L"]]:
    """Complete canvases, and the canvas that each is of.

    A filling is tokenised with the white space of the template in front of it.

    Arguments:
        canvases: of the templates.
        data: a list of fillings for each template, in their order; it may be empty.

    Raises:
        InputError: not a list for each template, no filling at all, one with unknown tokens, or one
            that the slots cannot hold.
    """
    if isinstance(data, str) or any(isinstance(each, str) for each in data):
        raise InputError("data is a list of fillings for each template, e.g. [['a cat', 'a dog']]")
    if len(data) != canvases.contexts:
        raise InputError(
            f"data has fillings of {len(data)} templates, but there are {canvases.contexts}; give "
            "a list for each, empty where there is none"
        )
    rows = [_row(canvases, k, filling) for k, fillings in enumerate(data) for filling in fillings]
    if not rows:
        raise InputError("data holds no filling; give at least one")
    conditions = torch.stack([condition for _, condition in rows])
    return torch.stack([x_0 for x_0, _ in rows]), conditions


def _row(
    canvases: Canvases, context: int, filling: Filling
) -> tuple[Int[Tensor, " L"], Int[Tensor, "2 L"]]:
    codec, texts = canvases.codec, [filling] if isinstance(filling, str) else list(filling)
    found = [i for i, layout in enumerate(canvases.layouts) if layout.context == context]
    slots = canvases.layouts[found[0]].template.slots
    if len(texts) != len(slots):
        raise InputError(
            f"the filling {filling!r} of template {context} is {len(texts)} texts for {len(slots)} "
            "slots; give a tuple of one text for each slot"
        )
    where = f"a filling of template {context}"
    pieces = [
        codec.ids(slot.lead * (not text[:1].isspace()) + text if text else "", where)
        for slot, text in zip(slots, texts, strict=True)
    ]
    for i in found:
        # Where lengths are drawn there is a canvas of just this length.
        layout, exact = canvases.layouts[i], len(found) > 1
        if _fits(layout, pieces, exact):
            x_0 = canvases.conditions[i, 0].clone()
            for place, ids in zip(layout.places, pieces, strict=True):
                x_0[place.start : place.start + len(ids)] = torch.tensor(ids, dtype=x_0.dtype)
            return x_0, canvases.conditions[i]
    written = ", ".join(slot.written for slot in slots)
    raise InputError(
        f"the filling {filling!r} of template {context} has {'+'.join(str(len(p)) for p in pieces)}"
        f" tokens, which {written} cannot hold; shorten it, or give the slot other lengths"
    )


def _fits(layout: Layout, pieces: list[list[int]], exact: bool) -> bool:
    for slot, place, ids in zip(layout.template.slots, layout.places, pieces, strict=True):
        least = len(place) if exact else min(slot.least, len(place))
        if not least <= len(ids) <= len(place):
            return False
    return True
