"""Where the parts of a story lie in a canvas: a context, a middle to be written, an ending.

    [ context, padded on the left | middle, padded on the right | ending, padded on the right ]

Pads are tokens like others: a model writes them, so that it chooses the middle's length, and a
prior that is not shown the ending does not learn its length either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from difftilt.diffusions.masked import GENERATED, GIVEN, SUFFIX
from difftilt.errors import InputError


@dataclass(frozen=True)
class Layout:
    """Widths in tokens.

    Arguments:
        context: of what both prior and posterior read.
        middle: of what they write.
        ending: of what the posterior alone reads.
    """

    context: int
    middle: int
    ending: int

    @property
    def length(self) -> int:
        """L."""
        return self.context + self.middle + self.ending

    @property
    def middle_slice(self) -> slice:
        """The columns of the middle."""
        return slice(self.context, self.context + self.middle)

    def roles(self) -> Int[Tensor, " L"]:
        """GIVEN, GENERATED and SUFFIX, as a canvas wants them."""
        return torch.tensor(
            [GIVEN] * self.context + [GENERATED] * self.middle + [SUFFIX] * self.ending
        )

    def open_middle(self, count: int) -> Bool[Tensor, "B L"]:
        """True in the middle, for ``count`` canvases."""
        return (self.roles() == GENERATED).expand(count, -1)

    def placed(
        self, context: Sequence[int], middle: Sequence[int], ending: Sequence[int], pad: int
    ) -> Int[Tensor, " L"]:
        """Token ids of one story; of a long context the last tokens are kept.

        Raises:
            InputError: the middle or the ending is too long.
        """
        if len(middle) > self.middle or len(ending) > self.ending:
            raise InputError(
                f"a middle of {len(middle)} tokens and an ending of {len(ending)} do not fit "
                f"{self.middle} and {self.ending}; leave the story out or widen the layout"
            )
        kept = list(context)[-self.context :] if self.context else []
        before = [pad] * (self.context - len(kept)) + kept
        after = list(ending) + [pad] * (self.ending - len(ending))
        return torch.tensor(before + list(middle) + [pad] * (self.middle - len(middle)) + after)
