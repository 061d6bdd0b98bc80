"""What carries a posterior: a copy of the prior, adapters on it, a drift net, a perceptron, a value
whose gradient guides, or the strengths of the prior's own guidance."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from difftilt.chains.chain import Chain, Kernel
from difftilt.errors import InputError
from difftilt.guidance.base import Guidance
from difftilt.guidance.classifier_free import ClassifierFreeDirection
from difftilt.guidance.strengths import LearnedGuidanceKernel, SlopeDirection
from difftilt.kernels.networks import DenoiserKernel, VectorKernel
from difftilt.kernels.order import ordered
from difftilt.kernels.token_heads import tempered
from difftilt.models.labels import Labels
from difftilt.models.mlp import Size
from difftilt.models.numbers import Numbers
from difftilt.models.reads import Reads
from difftilt.rewards.contract import LogReward
from difftilt.values.kernel import ValueKernel
from difftilt.values.networks import value_for


@dataclass(frozen=True)
class Form(ABC):
    """What carries a posterior; a task may have one of its own."""

    @abstractmethod
    def kernel(self, chain: Chain) -> Kernel:
        """The kernel on a prior's chain, at its starting point."""

    def kernel_for(self, chain: Chain, log_reward: LogReward, beta: float) -> Kernel:
        """The kernel for a target; most forms do not read the reward.

        Arguments:
            chain: the prior.
            log_reward: of the target.
            beta: of the target.
        """
        return self.kernel(chain)


@dataclass(frozen=True)
class FullCopy(Form):
    """A trainable copy of the prior's network.

    Arguments:
        learned_variance: also learn one log-scale per step (then it cannot be exported).
        labels: number of classes of a UNet that becomes conditional on one; None for none.
        learned_order: also choose which token comes next (a masked chain of ``Stepwise()`` order).
        learned_temperature: also learn how sure to be of each token (then it cannot be exported).
    """

    learned_variance: bool = False
    labels: int | None = None
    learned_order: bool = False
    learned_temperature: bool = False

    def kernel(self, chain: Chain) -> Kernel:
        """The kernel on a prior's chain, at its starting point."""
        from difftilt.kernels.networks import full_copy

        if self.labels is not None:
            from difftilt.adapters.labels import labelled_copy

            return labelled_copy(chain, self.labels, self.learned_variance)
        kernel = full_copy(chain, learned_variance=self.learned_variance)
        return _with_heads(kernel, chain, self)


@dataclass(frozen=True)
class LoRA(Form):
    """Low-rank adapters on the prior's own network; the prior is the net with adapters off.

    Arguments:
        rank: of each adapter.
        alpha: scale of each adapter times its rank; None for the rank itself.
        targets: names of the layers, or "all" linear and convolutional ones.
        learned_order: also choose which token comes next (a masked chain of ``Stepwise()`` order).
        learned_temperature: also learn how sure to be of each token (then it cannot be exported).
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] | str = ("to_q", "to_k", "to_v", "to_out.0")
    learned_order: bool = False
    learned_temperature: bool = False

    def kernel(self, chain: Chain) -> Kernel:
        """The kernel on a prior's chain, at its starting point."""
        from difftilt.adapters.lora import lora

        kernel = lora(chain, self.rank, self.alpha, self.targets)
        return _with_heads(kernel, chain, self)


def _with_heads(kernel: DenoiserKernel, chain: Chain, form: FullCopy | LoRA) -> Kernel:
    if form.learned_temperature:
        kernel = tempered(kernel, chain)
    return ordered(kernel, chain) if form.learned_order else kernel


@dataclass(frozen=True)
class DriftNet(Form):
    """An additive drift net of the prior's own class, smaller by ``shrink``.

    Arguments:
        shrink: divides the prior's channels.
    """

    shrink: int = 2

    def kernel(self, chain: Chain) -> Kernel:
        """The kernel on a prior's chain, at its starting point."""
        from difftilt.adapters.diffusers import drift_unet

        return drift_unet(chain, self.shrink)


def _reads(
    labels: tuple[int, ...], numbers: tuple[float, ...], largest_beta: float | None = None
) -> Reads | None:
    """What is read of a condition that holds labels, or numbers and maybe β, or nothing."""
    among = bool(numbers) or largest_beta is not None
    if labels and among:
        raise InputError("a condition holds labels or numbers; give labels=... or numbers=...")
    if labels:
        return Labels(labels)
    return Numbers(numbers, largest_beta) if among else None


@dataclass(frozen=True)
class Perceptron(Form):
    """An additive tilt for states of a few dimensions: K Gaussians per step.

    Arguments:
        components: K; 1 for a Gaussian.
        learned_variance: learn the diagonal variance (always on for K > 1).
        width: hidden width.
        depth: hidden layers.
        frequencies: Fourier features of the prior's prediction, per dimension.
        labels: number of values of each label of the condition, (B, K) integers; empty for none.
        numbers: usual size of each number of the condition, (B, K) floats; empty for none.
        largest_beta: the condition's last number is β in [0, largest_beta]; None: it has no β.
        linear: also a linear map of each step, from the state and the prediction to the shift.
    """

    components: int = 4
    learned_variance: bool = True
    width: int = 96
    depth: int = 3
    frequencies: int = 8
    labels: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    largest_beta: float | None = None
    linear: bool = False

    def __post_init__(self) -> None:
        _ = self.reads  # raises what is wrong with it

    @property
    def reads(self) -> Reads | None:
        """What it reads of the condition."""
        return _reads(self.labels, self.numbers, self.largest_beta)

    def kernel(self, chain: Chain) -> Kernel:
        """The kernel on a prior's chain, at its starting point."""
        return VectorKernel(
            chain.event_shape,
            chain.gaussian.steps,
            self.components,
            self.learned_variance,
            Size(self.width, self.depth, self.frequencies, self.linear),
            self.reads,
        )


@dataclass(frozen=True)
class ValueGuided(Form):
    """The prior guided by the gradient of a learned ``log h``; what ``CEP`` trains.

    The value is a perceptron, or, where samples are images (C, H, W), a convolutional network.

    Arguments:
        scale: of the guidance; 1 aims at the posterior.
        largest_beta: one value for every β in (0, largest_beta]; None: for the target's β alone.
        labels: number of values of each label of the condition, (B, K) integers; empty for none.
        numbers: usual size of each number of the condition, (B, K) floats; empty for none.
        width: a perceptron's hidden width.
        depth: a perceptron's hidden layers.
        frequencies: Fourier features of the prior's prediction, per dimension.
    """

    scale: float = 1.0
    largest_beta: float | None = None
    labels: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    width: int = 96
    depth: int = 3
    frequencies: int = 8

    def kernel(self, chain: Chain) -> Kernel:
        """The kernel on a prior's chain, at its starting point."""
        size = Size(self.width, self.depth, self.frequencies)
        _ = chain.gaussian  # raises the sentence about chains of tokens
        reads = _reads(self.labels, self.numbers)
        value = value_for(chain, size, self.largest_beta, reads)
        # The target's own β is set by who knows it (``ValueKernel.at``).
        beta = 1.0 if self.largest_beta is None else self.largest_beta
        return ValueKernel(value, chain.denoiser, chain.gaussian, self.scale, beta)


@dataclass(frozen=True)
class LearnedGuidance(Form):
    """The prior moved along a direction of guidance; one learned strength per step.

    Arguments:
        beside: a form whose shifts are added, e.g. ``LoRA(rank=4)`` or strengths along another
            direction, or None: the strengths alone.
        along: a training-free method whose direction to take, e.g. ``DPS()`` where the reward has a
            gradient; None: the prior's own classifier-free guidance.
    """

    beside: Form | None = None
    along: Guidance | None = None

    def kernel(self, chain: Chain) -> Kernel:
        """The kernel on a prior's chain, at its starting point.

        Raises:
            InputError: the direction is a reward's, or the prior has no null condition.
        """
        if self.along is not None:
            raise InputError(
                "this direction follows a reward; make the kernel of a target, by "
                "target.posterior(form)"
            )
        beside = None if self.beside is None else self.beside.kernel(chain)
        return LearnedGuidanceKernel(ClassifierFreeDirection(chain), chain.steps, beside)

    def kernel_for(self, chain: Chain, log_reward: LogReward, beta: float) -> Kernel:
        beside = None
        if self.beside is not None:
            beside = self.beside.kernel_for(chain, log_reward, beta)
        if self.along is None:
            return LearnedGuidanceKernel(ClassifierFreeDirection(chain), chain.steps, beside)
        guided = self.along.kernel(chain, log_reward, beta)
        direction = SlopeDirection(guided, chain.steps).to(chain.like)
        return LearnedGuidanceKernel(direction, chain.steps, beside)
