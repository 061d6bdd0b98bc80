"""New conditions for a pre-trained model: the reward is what classifiers say of the labels.

With ``y_1, ..., y_K`` independent given x, ``p(x | y) ∝ p(x) Π_k p(y_k | x)``: each classifier can
be learned from its own labelled pairs, and nothing has to carry all labels.
"""

from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt.errors import InputError
from difftilt.rewards.wrappers import ClassifierReward, Tempered


@final
class ControlReward:
    """``log r(x, y) = Σ_k γ_k log softmax(classifier_k(x))[y_k] <= 0``.

    γ = 1 is exact conditioning on calibrated classifiers; a larger γ sharpens its control.

    Arguments:
        classifiers: K maps of ``x_0`` to logits, (B, classes of k); a torch module is put in eval
            mode.
        strengths: γ_k > 0; default all 1.

    Raises:
        InputError: no classifier, or not one positive strength for each.

    Source: Zhao et al. 2024, CTRL (arXiv 2406.12120).
    """

    def __init__(
        self,
        classifiers: Sequence[Callable[[Tensor], Tensor]],
        strengths: Sequence[float] | None = None,
    ) -> None:
        strengths = [1.0] * len(classifiers) if strengths is None else strengths
        if not classifiers or len(strengths) != len(classifiers) or min(strengths) <= 0:
            raise InputError(
                f"{len(classifiers)} classifiers with strengths {list(strengths)}; give at least "
                "one classifier, and a strength above 0 for each"
            )
        pairs = zip(classifiers, strengths, strict=True)
        self._terms = [Tempered(ClassifierReward(each), 1 / strength) for each, strength in pairs]
        self.bound: float | None = 0.0

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."], condition: Tensor | None = None
    ) -> Float[Tensor, " B"]:
        """``log r`` in nats.

        Arguments:
            x_0: samples, (B, *event).
            condition: y, (B, K) integers.

        Raises:
            InputError: no condition, another shape, or a label that its classifier does not know.
        """
        wanted = (len(x_0), len(self._terms))
        if condition is None or condition.shape != wanted:
            found = None if condition is None else tuple(condition.shape)
            raise InputError(
                f"the controls need one label for each classifier, shape {wanted}, got {found}; "
                "give a condition of that shape"
            )
        labels = condition.unbind(1)
        terms = [term(x_0, y) for term, y in zip(self._terms, labels, strict=True)]
        return torch.stack(terms).sum(0)
