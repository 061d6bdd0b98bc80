"""Diffusion models of point clouds: a network of (points, time), and the chain that it samples.

    model = load_point_clouds(folder)              # difftilt's own, with ``save`` its inverse
    chain = model.chain(steps=20)                  # clouds (P, 3), no order among the points

The chain is an ordinary Gaussian diffusion on (P, 3): a cloud is one sample, its points one event.
Its levels are even in the log-SNR. A cloud of P points is decided at noise that hides each single
point, since P points together say more than one: about where ``P alpha⁴`` is 1, a log-SNR of -2.7
for 256 points. So the levels need not go below -6, and few steps are enough if each has the
variance of largest likelihood (Bao et al. 2022, theorem 1, arXiv 2201.06503), with the network's
own error where it was measured on data:

    std_n² = Var[x_{n-1} | x_n, x_0] + a_n² E|x_0 - x̂_0|² / 3P,     a_n the coefficient of x_0.

The last step, to the data, has none: prior and posterior share it.

Published models whose denoiser visits each point by itself are read by ``adapters.pointwise``.

Source: Luo and Hu 2021, Diffusion probabilistic models for 3D point cloud generation (arXiv
2103.01458); Zhou et al. 2021, PVD (arXiv 2104.03670).
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.adapters.folders import OwnFolder
from difftilt.chains.chain import Chain
from difftilt.chains.fingerprints import fingerprint
from difftilt.denoisers import NetworkDenoiser
from difftilt.diffusions.gaussian import (
    GaussianDiffusion,
    ancestral_tables,
    posterior_variance,
)
from difftilt.errors import InputError
from difftilt.models.point_cloud import PointNetwork, PointNetworkSize
from difftilt.schedules import NoiseLevels, VariancePreserving

FOLDER = OwnFolder("difftilt point cloud model", "point_cloud")
ERROR = "clean_error"
MEASURED = 33
CHUNK = 64


@dataclass(frozen=True)
class PointCloudConfig:
    """What a model of point clouds is made of.

    Arguments:
        points: P of a cloud.
        clean: log-SNR of the data's end of the levels, nats.
        noisy: log-SNR of the noise's end, nats.
        size: of the network.

    Raises:
        InputError: no point, or levels whose noise does not grow.
    """

    points: int = 256
    clean: float = 7.0
    noisy: float = -6.0
    size: PointNetworkSize = field(default_factory=PointNetworkSize)

    def __post_init__(self) -> None:
        if self.points < 1 or not self.noisy < self.clean:
            raise InputError(
                "a model of point clouds needs points >= 1 and noisy < clean, got "
                f"points={self.points}, noisy={self.noisy}, clean={self.clean}"
            )

    def time_of(self, log_snr: Tensor) -> Tensor:
        """What the network is told at a log-SNR: 0 at ``clean``, 1 at ``noisy``."""
        return (self.clean - log_snr) / (self.clean - self.noisy)


@dataclass(frozen=True)
class PointCloudModel:
    """A velocity-predicting network of point clouds and its config.

    Arguments:
        network: called as ``network(points (B, P, 3), time (B,))``.
        config: of the model.
        error: (K,) mean squared error of the clean prediction, at K times even in [0, 1], or None:
            the chain then has DDPM's own variances, which are too small in few steps.
    """

    network: nn.Module
    config: PointCloudConfig
    error: Float[Tensor, " times"] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return fingerprint(self.network)

    def chain(self, steps: int, points: int | None = None) -> Chain:
        """The prior's chain.

        Arguments:
            steps: N.
            points: of a cloud; None for as many as it was trained with.
        """
        config = self.config
        levels = VariancePreserving(config.clean, config.noisy).levels(steps)
        shape = (config.points if points is None else points, 3)
        network = self.network.eval().requires_grad_(False)
        like = next(network.parameters()).detach().new_zeros(())
        denoiser = NetworkDenoiser(network, "v_prediction")
        tables = ancestral_tables(levels, self._stds(levels))
        return Chain(denoiser, GaussianDiffusion(levels, tables), shape, like=like)

    def _stds(self, levels: NoiseLevels) -> Float[Tensor, " levels"]:
        """The standard deviation of each step (equation of the module)."""
        variance = posterior_variance(levels)
        if self.error is not None:
            place = levels.time * (len(self.error) - 1)
            low = place.long().clamp(max=len(self.error) - 2)
            known = self.error.double()
            error = torch.lerp(known[low], known[low + 1], place - low)
            variance = variance + ancestral_tables(levels).clipped.square() * error
        variance[1] = 0.0
        return variance.sqrt()

    @torch.no_grad()
    def measured(
        self, clouds: Float[Tensor, "n P 3"], generator: torch.Generator | None = None
    ) -> "PointCloudModel":
        """This model with its error, measured on data.

        Arguments:
            clouds: as it was trained on; all are visited at every time.
            generator: of the noise.
        """
        found = []
        for time in torch.linspace(0, 1, MEASURED):
            log_snr = self.config.clean - time * (self.config.clean - self.config.noisy)
            alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
            x = alpha * clouds + sigma * torch.randn(clouds.shape, generator=generator)
            said = [self.network(part, time.expand(len(part))) for part in x.split(CHUNK)]
            found.append((alpha * x - sigma * torch.cat(said) - clouds).square().mean())
        return replace(self, error=torch.stack(found))

    def save(self, folder: str | Path) -> Path:
        """Write config and weights, in half precision.

        Raises:
            InputError: the place holds something else.
            CheckpointError: the disk says no.
        """
        weights = {k: v.half() for k, v in self.network.state_dict().items()}
        if self.error is not None:
            weights[ERROR] = self.error
        return FOLDER.write(folder, asdict(self.config), weights)


def load_point_clouds(folder: str | Path) -> PointCloudModel:
    """A model that ``save`` wrote, in float32.

    Raises:
        CheckpointError: a file is missing, broken or does not fit.
        InputError: the config is out of range.
    """
    config, network, error = FOLDER.read(folder, lambda c: PointNetwork(_config(c).size), ERROR)
    return PointCloudModel(network, _config(config), error)


def _config(options: dict[str, Any]) -> PointCloudConfig:
    return PointCloudConfig(**{**options, "size": PointNetworkSize(**options["size"])})
