"""Diffusion models of point clouds: a network of (points, time), and the chain that it samples.

    model = load_point_clouds(folder)              # difftilt's own, with ``save`` its inverse
    chain = model.chain(steps=20)                  # clouds (P, 3), no order among the points

The chain is an ordinary Gaussian diffusion on (P, 3): a cloud is one sample, its points one event.
Its levels are even in the log-SNR. A cloud of P points is decided at noise that hides each single
point, since P points together say more than one: about where ``P alpha⁴`` is 1, a log-SNR of -2.7
for 256 points. So the levels need not go below -6, and few steps are enough.

Published models whose denoiser visits each point by itself are read by ``adapters.pointwise``.

Source: Luo and Hu 2021, Diffusion probabilistic models for 3D point cloud generation (arXiv
2103.01458); Zhou et al. 2021, PVD (arXiv 2104.03670).
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difftilt.adapters.diffusers import fingerprint
from difftilt.adapters.folders import check_replaceable, write_whole
from difftilt.chains import Chain
from difftilt.denoisers import NetworkDenoiser
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import CheckpointError, InputError
from difftilt.models.point_cloud import PointNetwork, PointNetworkSize
from difftilt.schedules import VariancePreserving

KIND = "difftilt point cloud model"
CONFIG, WEIGHTS = "point_cloud.json", "point_cloud.safetensors"


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
    """

    network: nn.Module
    config: PointCloudConfig

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
        return Chain(denoiser, GaussianDiffusion(levels), shape, like=like)

    def save(self, folder: str | Path) -> Path:
        """Write config and weights, in half precision.

        Raises:
            InputError: the place holds something else.
            CheckpointError: the disk says no.
        """
        folder = Path(folder).expanduser()
        check_replaceable(folder, CONFIG, KIND)
        weights = {k: v.half().contiguous() for k, v in self.network.state_dict().items()}

        def write(new: Path) -> None:
            new.mkdir()
            text = json.dumps({"kind": KIND, "config": asdict(self.config)}, indent=1)
            (new / CONFIG).write_text(text + "\n")
            save_file(weights, new / WEIGHTS)

        write_whole(folder, write, "model of point clouds")
        return folder


def load_point_clouds(folder: str | Path) -> PointCloudModel:
    """A model that ``save`` wrote, in float32.

    Raises:
        CheckpointError: a file is missing, broken or does not fit.
        InputError: the config is out of range.
    """
    folder = Path(folder).expanduser()
    try:
        options = dict(json.loads((folder / CONFIG).read_text())["config"])
        size = PointNetworkSize(**options.pop("size"))
        config = PointCloudConfig(**options, size=size)
        network = PointNetwork(size)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except InputError:
        raise
    except Exception as error:  # json, safetensors and a dataclass have kinds of their own
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder} holds no readable {KIND} ({CONFIG} and {WEIGHTS}): {reason}"
        ) from error
    return PointCloudModel(network.eval().requires_grad_(False), config)
