"""Published models of Luo and Hu's class: a pointwise denoiser, given a latent of the shape.

    chain = pointwise_chain(load_tensors("airplane.safetensors"), points=512)
    clouds = rollout(chain.given(latents), ...)        # latents (B, F) are the condition

The latent comes from the model's own flow or from N(0, I), outside of this chain; the chain is the
law of a cloud given its latent. Its levels are the model's own, beta even from 1e-4 to 0.02 in 100
steps for the published ones, and the network is told beta. A file with more than tensors in it is
refused: write the state dict as safetensors once.

Source: Luo and Hu 2021 (arXiv 2103.01458), algorithm 1; code at github.com/luost26.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.denoisers import Denoiser, Level, to_clean
from difftilt.diffusions.gaussian import GaussianDiffusion, ancestral_tables, posterior_variance
from difftilt.errors import CheckpointError, InputError
from difftilt.models.pointwise import TIME_NUMBERS, PointwiseNetwork
from difftilt.schedules import NoiseLevels

NAMES = {"_layer": "layer", "_hyper_gate": "gate", "_hyper_bias": "shift"}
FIRST = "layers.0._layer.weight"


@dataclass(frozen=True)
class PointwiseLevels:
    """The noise levels of a published model.

    Arguments:
        steps: N.
        first: beta of the first step, at the data.
        last: beta of the last one.
        flexibility: of the reverse std, from 0 (the posterior's) to 1 (sqrt beta).

    Raises:
        InputError: no step, or a number outside (0, 1) or [0, 1].
    """

    steps: int = 100
    first: float = 1e-4
    last: float = 0.02
    flexibility: float = 0.0

    def __post_init__(self) -> None:
        within = 0 < self.first <= self.last < 1 and 0 <= self.flexibility <= 1
        if self.steps < 1 or not within:
            raise InputError(
                "pointwise levels need steps >= 1, 0 < first <= last < 1 and flexibility in "
                f"[0, 1], got {self.steps}, {self.first}, {self.last} and {self.flexibility}"
            )

    def diffusion(self) -> GaussianDiffusion:
        """The chain's levels and reverse kernels; the last step, to the data, has no noise."""
        beta = torch.linspace(self.first, self.last, self.steps, dtype=torch.float64)
        beta = torch.cat([torch.zeros(1, dtype=torch.float64), beta])
        square = (1 - beta).cumprod(0)
        levels = NoiseLevels(beta, square.sqrt(), (1 - square).sqrt())
        narrow = posterior_variance(levels).sqrt()
        std = self.flexibility * beta.sqrt() + (1 - self.flexibility) * narrow
        std[1] = 0.0
        # The chain starts from N(0, I) whatever signal the last level keeps, as the sampler does.
        return GaussianDiffusion(levels, ancestral_tables(levels, std), base_std=1.0)


class PointwiseDenoiser(Denoiser):
    """A pointwise network as a denoiser; ``given(latents)`` binds.

    Arguments:
        network: predicts noise.
        latent: (B, F) bound latents, or None.
    """

    def __init__(self, network: PointwiseNetwork, latent: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.bound = latent

    def forward(self, x_t: Float[Tensor, "B P 3"], level: Level) -> Float[Tensor, "B P 3"]:
        wanted = self.network.latent
        if self.bound is None or self.bound.ndim != 2 or self.bound.shape[1] != wanted:
            found = None if self.bound is None else tuple(self.bound.shape)
            raise InputError(
                f"this model reads a latent of {wanted} numbers for each shape; bind (B, {wanted}) "
                f"with given(latents), got {found}"
            )
        latent = self.bound.to(x_t).expand(len(x_t), -1)
        output = self.network(x_t, level.times(x_t, x_t.dtype), latent)
        return to_clean("epsilon", output, x_t, level)

    def given(self, condition: Tensor | None) -> "PointwiseDenoiser":
        return PointwiseDenoiser(self.network, condition)


def pointwise_chain(
    weights: Mapping[str, Tensor],
    points: int = 2048,
    levels: PointwiseLevels | None = None,
    residual: bool = True,
) -> Chain:
    """The chain of a published model, to be bound to latents with ``given``.

    Arguments:
        weights: its state dict; what is not of the denoiser (encoder, flow) is left out.
        points: P of a cloud.
        levels: of the noise; None for the published ones.
        residual: whether the network adds its input to its output.

    Raises:
        InputError: the weights have no such layers, or no point is asked for.
        CheckpointError: a layer is missing or of another shape.
    """
    if points < 1:
        raise InputError(f"a cloud has at least 1 point, got points={points}")
    own = _renamed(weights)
    widths = (3, *(len(own[f"layers.{k}.layer.bias"]) for k in range(_layers(own))))
    network = PointwiseNetwork(
        own["layers.0.gate.weight"].shape[1] - TIME_NUMBERS, residual, widths
    )
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the weights do not fit a pointwise network: {reason}") from error
    network.eval().requires_grad_(False)
    made = (PointwiseLevels() if levels is None else levels).diffusion()
    return Chain(PointwiseDenoiser(network), made, (points, 3), like=torch.zeros(()))


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The denoiser's own weights, under our names."""
    prefix = next((name.removesuffix(FIRST) for name in weights if name.endswith(FIRST)), None)
    if prefix is None:
        raise InputError(
            f"the weights have no {FIRST!r}; a pointwise model's state dict has it, under a prefix"
        )
    found = {}
    for name, tensor in weights.items():
        parts = name.removeprefix(prefix).split(".")
        if name.startswith(prefix + "layers.") and parts[2] in NAMES:
            found[".".join([*parts[:2], NAMES[parts[2]], *parts[3:]])] = tensor.float()
    return found


def _layers(own: Mapping[str, Tensor]) -> int:
    """How many layers have all that a layer has."""
    k = 0
    while all(f"layers.{k}.{part}" in own for part in ("layer.bias", "gate.weight")):
        k += 1
    if k == 0:
        raise CheckpointError("the first layer of the pointwise network lacks its bias or gate")
    return k
