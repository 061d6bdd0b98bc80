"""Guidance by what is known of ``log h`` at every noise level: a classifier, a value, a formula."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.guidance.base import (
    Guidance,
    GuidedKernel,
    check_scale,
)
from difftilt.rewards.contract import LogReward
from difftilt.rewards.wrappers import ClassifierReward
from difftilt.values.functions import Value
from difftilt.values.kernel import ValueKernel


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
            time = torch.as_tensor(chain.gaussian.level(n, x).time, dtype=x.dtype, device=x.device)
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

    def kernel(self, chain: Chain, log_reward: LogReward, beta: float = 1.0) -> ValueKernel:
        return ValueKernel(self.value, chain.denoiser, chain.gaussian, self.scale, beta)


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
