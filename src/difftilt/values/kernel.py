"""A posterior that is its prior guided by a learned value: ``delta_n = scale std_n ∇_x log h_n``.

In continuous time and with scale 1 this is the posterior's own drift; at finite N it is a Gaussian
kernel near the exactly tilted one, and the certificate says how near.

Source: Lu et al. 2023, section 3 (arXiv 2304.12824).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Kernel
from difftilt.denoisers import Denoiser, differentiable_prediction
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.transitions.gaussian import GaussianTilt
from difftilt.values.functions import Value


class ValueKernel(Kernel):
    """Each step's mean moved by ``scale std_n² ∇_x log h_n(x_n)``.

    The gradient is the total one: it also goes through the prior's prediction, where the value
    reads it. Without gradients enabled the tilt is detached; with them it can be differentiated in
    the value's parameters.

    Arguments:
        value: ``log h``; its parameters are the kernel's.
        denoiser: the prior's; never trained, and no part of the kernel's own state.
        diffusion: shared with the prior.
        scale: of the guidance; 1 aims at the posterior.
        beta: β, for a value that has it as an input.

    Raises:
        InputError: β beyond what the value was trained on.
    """

    def __init__(
        self,
        value: Value,
        denoiser: Denoiser,
        diffusion: GaussianDiffusion,
        scale: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        largest = value.largest_beta
        if largest is not None and not 0 < beta <= largest:
            raise InputError(
                f"this value knows β in (0, {largest}], got beta={beta}; give its form a larger "
                "largest_beta"
            )
        self.value = value
        # In a tuple, so that the prior's weights are neither trained nor saved with the kernel's.
        self._prior = (denoiser,)
        self.diffusion = diffusion
        self.scale = scale
        self.beta = beta
        self.eval()

    def at(self, beta: float) -> "ValueKernel":
        """The kernel of another β, with the same value.

        Raises:
            InputError: β beyond what the value was trained on.
        """
        return ValueKernel(self.value, self._prior[0], self.diffusion, self.scale, beta)

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> GaussianTilt:
        std = self.diffusion.reverse(prediction, x, n).std
        return GaussianTilt(self.scale * std * self.gradient(x, n, condition))

    def gradient(
        self, x: Float[Tensor, "B ..."], n: int | Int[Tensor, " B"], condition: Tensor | None = None
    ) -> Float[Tensor, "B ..."]:
        """``∇_x log h_n(x)``, through the prior's prediction too where the value reads it.

        Arguments:
            x: states x_n.
            n: the step, one int or one per sample.
            condition: (B, ...) or None.
        """
        trained = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            prediction = self._prediction(x, n, condition)
            log_h = self.value(x, n, prediction, condition, self.beta)
            (gradient,) = torch.autograd.grad(log_h.sum(), x, create_graph=trained)
        return gradient

    def _prediction(self, x: Tensor, n: int | Tensor, condition: Tensor | None) -> Tensor:
        """The prior's prediction with its graph to x; x itself for a value that reads none."""
        if not self.value.reads_prediction:
            return x
        denoiser = self._prior[0].given(condition)
        return differentiable_prediction(denoiser, x, self.diffusion.level(n, x))
