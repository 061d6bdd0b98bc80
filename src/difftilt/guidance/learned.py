"""Guidance by what is known of ``log h`` at every noise level: a classifier, a value, a formula."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.chains import Chain, Kernel
from difftilt.guidance.base import (
    Guidance,
    GuidedKernel,
    check_scale,
    differentiable_prediction,
    gradient_of,
)
from difftilt.reward_contract import LogReward
from difftilt.rewards import ClassifierReward
from difftilt.transitions import GaussianTilt
from difftilt.values import Value


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """``g = ∇ β log Σ_{k in classes} softmax(classifier(x_n, time))_k``.

    With Bayes' classifier of the noisy states this is exactly ``∇ log h_n`` of the reward
    ``p(classes given x_0)`` at β = 1.

    Arguments:
        classifier: ``(x_n, time (B,)) -> logits`` (B, number of classes), trained on noisy states;
            ``time`` is what the prior's network is told. A torch module is put in eval mode.
        classes: the wanted class or classes; None takes each sample's from the condition.
        scale: of the drift.

    Raises:
        InputError: a scale that is not finite, or no such class.

    Source: Dhariwal and Nichol 2021, algorithm 1 (arXiv 2105.05233).
    """

    classifier: Callable[[Tensor, Tensor], Tensor]
    classes: int | Sequence[int] | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale(self.scale)
        ClassifierReward(lambda x: x, self.classes)  # raises what is wrong with the classes
        if isinstance(self.classifier, nn.Module):
            self.classifier.eval()

    def kernel(self, chain: Chain, log_reward: LogReward, beta: float = 1.0) -> GuidedKernel:
        def log_h(x: Tensor, n: int | Tensor, condition: Tensor | None) -> Float[Tensor, " B"]:
            time = torch.as_tensor(chain.diffusion.level(n, x).time, dtype=x.dtype, device=x.device)
            told = time.reshape(-1).expand(len(x))
            log_p = ClassifierReward(lambda state: self.classifier(state, told), self.classes)
            return beta * log_p(x, condition)

        return GuidedKernel(chain, log_h, self.scale)


@dataclass(frozen=True)
class ValueGuidance(Guidance):
    """``g = ∇ log h_n(x_n)`` of a ``Value``, through the prior's prediction that it reads too.

    Arguments:
        value: the estimate of ``log h``; the kernel owns it.
        scale: of the drift.

    Raises:
        InputError: a scale that is not finite.

    Source: Lu et al. 2023, contrastive energy prediction (arXiv 2304.12824).
    """

    value: Value
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def kernel(self, chain: Chain, log_reward: LogReward, beta: float = 1.0) -> "ValueKernel":
        return ValueKernel(chain, self.value, beta, self.scale)


@final
class ValueKernel(Kernel):
    """``δ_n = scale · std_n · ∇ log h_n(x_n)`` of a value that is part of this module.

    Its parameters are trained and saved with the kernel, the prior's are not; where gradients are
    enabled the drift keeps its graph to them.

    Arguments:
        chain: the prior.
        value: ``log h``.
        beta: β that the value is told.
        scale: of the drift.
    """

    def __init__(self, chain: Chain, value: Value, beta: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        self.chain = chain.prior
        self.value = value
        self.beta = beta
        self.scale = scale
        self.eval()

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> GaussianTilt:
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        gradient = gradient_of(self.log_h, x, n, condition, create_graph=trained)
        std = self.chain.law(prediction.detach(), x.detach(), n).std
        return GaussianTilt(self.scale * std * gradient)

    def log_h(
        self, x: Float[Tensor, "B ..."], n: int | Tensor, condition: Tensor | None
    ) -> Float[Tensor, " B"]:
        """The value at states, the prior's prediction worked out with its graph."""
        prediction = differentiable_prediction(self.chain, x, n, condition)
        return self.value(x, n, prediction, condition, self.beta)


@dataclass(frozen=True)
class OracleGuidance(Guidance):
    """``g = ∇ log h_n(x_n)`` of a formula, for problems whose answer is known.

    Arguments:
        log_h: ``(x_n, n) -> (B,)`` in torch operations; n is one int or one per sample; β is in it.
        scale: of the drift.

    Raises:
        InputError: a scale that is not finite.
    """

    log_h: Callable[[Tensor, int | Tensor], Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def kernel(self, chain: Chain, log_reward: LogReward, beta: float = 1.0) -> GuidedKernel:
        return GuidedKernel(chain, lambda x, n, condition: self.log_h(x, n), self.scale)
