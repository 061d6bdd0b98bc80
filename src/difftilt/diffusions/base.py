"""What a chain asks of a state space: its levels, its noise, its reverse steps.

Two state spaces are written: Gaussian (``diffusions.gaussian``) and masked (``diffusions.masked``).
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from difftilt.errors import InputError
from difftilt.noise import Noise
from difftilt.transitions.base import Tilt, Transition


class Diffusion(ABC):
    """Levels 0 ... N, the reverse step of each, and the forward process that it inverts.

    Class attributes:
        whole: whether paths keep a prediction of all of x_0, or of what their own step drew alone.
    """

    whole: ClassVar[bool] = True

    @property
    @abstractmethod
    def steps(self) -> int:
        """Number of steps N."""

    @abstractmethod
    def has_density(self, n: int) -> bool:
        """Whether step ``n -> n - 1`` is stochastic."""

    @abstractmethod
    def level(self, n: int | Tensor, x: Tensor, condition: Tensor | None = None) -> Any:
        """What a denoiser is told of level ``n`` (an int, or one per sample (B,)) of states x.

        Arguments:
            n: the level.
            x: states x_n.
            condition: (B, ...); a canvas says how far its own chain is. None: there is none.
        """

    @abstractmethod
    def base(self, like: Shaped[Tensor, "B ..."], condition: Tensor | None = None) -> Transition:
        """The law of ``x_N``, on the shape of ``like``."""

    @abstractmethod
    def reverse(
        self, prediction: Tensor, x: Shaped[Tensor, "B ..."], n: int | Tensor
    ) -> Transition:
        """The law of ``x_{n-1}`` given ``x_n`` and the denoiser's prediction."""

    @abstractmethod
    def tilt_between(
        self, other: Tensor, own: Tensor, x: Shaped[Tensor, "B ..."], n: int | Tensor
    ) -> Tilt:
        """The tilt from the step of prediction ``own`` (the prior's) to that of ``other``."""

    @abstractmethod
    def noised(
        self,
        x_0: Shaped[Tensor, "B ..."],
        upto: int,
        noise: Noise,
        condition: Tensor | None = None,
    ) -> list[Tensor]:
        """States ``x_0, x_1, ..., x_upto`` of the forward process started at data."""

    @abstractmethod
    def noised_pairs(
        self,
        x_0: Shaped[Tensor, "R ..."],
        n: Int[Tensor, " R"],
        noise: Noise,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(x_n, x_{n-1})`` of the forward process from each end, one step n for each."""

    @abstractmethod
    def clean(
        self, prediction: Tensor, x: Shaped[Tensor, "B ..."], n: int | Tensor
    ) -> Shaped[Tensor, "B ..."]:
        """The guess of x_0 that a prediction of all of it makes at ``x_n``."""

    @abstractmethod
    def denoising_pair(
        self,
        x_0: Shaped[Tensor, "R ..."],
        n: Int[Tensor, " R"],
        noise: Noise,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ends noised to ``x_n``, and what a denoiser is to find there."""

    @abstractmethod
    def denoising_loss(
        self,
        prediction: Tensor,
        wanted: Shaped[Tensor, "R ..."],
        x: Shaped[Tensor, "R ..."],
        n: Int[Tensor, " R"],
    ) -> Float[Tensor, " R"]:
        """The loss of the pre-training, of ``denoising_pair``'s states."""

    @property
    def leap(self) -> "Diffusion":
        """These levels with steps that go from ``x_n`` to ``x_0`` in one network call.

        Raises:
            InputError: one call has no such density.
        """
        raise InputError(
            "this objective wants the likelihood of x_0 given x_n in one network call, which only "
            "chains of tokens have; use RTB or RewardWeighted"
        )

    def planned(
        self, x: Shaped[Tensor, "B ..."], n: int, noise: Noise, condition: Tensor | None = None
    ) -> Tensor:
        """``x_n`` with what the step decides before the network is asked, which costs no ratio."""
        return x

    def kept(self, prediction: Tensor, law: Transition, landed: Shaped[Tensor, "B ..."]) -> Tensor:
        """What a path keeps of the prior's prediction, so as not to ask for it again."""
        return prediction

    def calls(self, x: Shaped[Tensor, "B ..."], n: int | Tensor) -> int:
        """How many of the states a network has to see."""
        return len(x)
