"""Models of point clouds: symmetries, files, and the published sampler step for step."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import difftilt
from difftilt.adapters.point_clouds import (
    FOLDER,
    PointCloudConfig,
    PointCloudModel,
    load_point_clouds,
)
from difftilt.adapters.pointwise import NAMES, PointwiseLevels, pointwise_chain
from difftilt.chains.chain import Path
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.errors import CheckpointError, InputError
from difftilt.kernels.networks import full_copy
from difftilt.models.point_cloud import PointNetwork, PointNetworkSize
from difftilt.models.pointwise import PointwiseNetwork
from difftilt.noise import GeneratorNoise

CONFIG, WEIGHTS = FOLDER.files
SIZE = PointNetworkSize(width=16, token_width=16, tokens=4, blocks=2, heads=2, frequencies=2)
CONFIG_12 = PointCloudConfig(points=12, size=SIZE)


def _network(outputs: int = 3) -> PointNetwork:
    torch.manual_seed(0)
    network = PointNetwork(SIZE, outputs)
    with torch.no_grad():
        network.last.weight.normal_()
    return network


def test_a_permutation_of_the_points_permutes_the_output(generator):
    network = _network()
    x, time = torch.randn(3, 12, 3, generator=generator), torch.rand(3, generator=generator)
    order = torch.randperm(12, generator=generator)
    found = network(x, time).detach()
    assert torch.allclose(network(x[:, order], time), found[:, order], atol=1e-5)
    assert float(found.abs().max()) > 0.1 and not torch.allclose(found[:, order], found, atol=1e-2)


def test_the_network_takes_any_number_of_points_and_starts_at_zero(generator):
    torch.manual_seed(0)
    network = PointNetwork(SIZE)
    for points in (1, 40):
        x = torch.randn(2, points, 3, generator=generator)
        assert torch.equal(network(x, torch.zeros(2)), torch.zeros(2, points, 3))


def test_the_log_ratio_of_a_path_does_not_see_the_order_of_the_points(generator):
    chain = PointCloudModel(_network(), CONFIG_12).chain(5)
    kernel = full_copy(chain)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    posterior = chain.tilted(kernel)
    path = rollout(posterior, 4, GeneratorNoise(generator))
    order = torch.randperm(12, generator=generator)
    shuffled = Path(path.states[:, :, order])
    with torch.no_grad():
        found, again = log_ratio(posterior, path), log_ratio(posterior, shuffled)
    assert float(found.abs().min()) > 1e-2
    assert torch.allclose(found, again, rtol=1e-4, atol=1e-4)


def test_a_saved_model_is_loaded_and_is_a_prior(tmp_path):
    folder = PointCloudModel(_network(), CONFIG_12).save(tmp_path / "clouds")
    model = load_point_clouds(folder)
    assert model.config == CONFIG_12
    assert model.fingerprint == load_point_clouds(folder).fingerprint
    for name, tensor in model.network.state_dict().items():
        assert torch.allclose(tensor, _network().state_dict()[name], rtol=1e-3, atol=1e-4)
    prior = difftilt.load(folder, steps=4)
    assert prior.chain.event_shape == (12, 3) and prior.chain.steps == 4
    assert model.chain(4, points=20).event_shape == (20, 3)
    samples = prior.sample(3, seed=1)
    assert samples.shape == (3, 12, 3) and bool(samples.isfinite().all())
    assert prior.chain.density_steps == [2, 3, 4]
    with pytest.raises(InputError, match=r"a model of point .* no option 'eta'; options"):
        difftilt.load(folder, steps=4, eta=0.5)


def test_broken_folders_are_named(tmp_path):
    folder = PointCloudModel(_network(), CONFIG_12).save(tmp_path / "clouds")
    with pytest.raises(CheckpointError, match="no readable difftilt point cloud model"):
        load_point_clouds(tmp_path)
    written = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({"config": {**written["config"], "points": 0}}))
    with pytest.raises(InputError, match="points >= 1"):
        load_point_clouds(folder)
    (folder / CONFIG).write_text(json.dumps(written))
    weights = load_file(folder / WEIGHTS)
    weights.pop("last.bias")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"last\.bias"):
        load_point_clouds(folder)


# --------------------------------------------------------------------- published pointwise models

LATENT, STEPS = 4, 6


def _published(prefix: str = "diffusion.net.") -> dict[str, Tensor]:
    """A state dict by the published names, with other parts of the model in it."""
    torch.manual_seed(1)
    network = PointwiseNetwork(LATENT, widths=(3, 8, 16, 3))
    theirs = {ours: name for name, ours in NAMES.items()}
    found = {"encoder.conv1.weight": torch.zeros(2, 2)}
    for name, tensor in network.state_dict().items():
        layers, k, part, kind = name.split(".")
        found[f"{prefix}{layers}.{k}.{theirs[part]}.{kind}"] = tensor
    return found


def _noise_by_the_paper(weights: dict[str, Tensor], x: Tensor, beta: Tensor, z: Tensor) -> Tensor:
    """The network's noise, layer by layer from the published weights."""
    told = torch.cat([torch.stack([beta, beta.sin(), beta.cos()], 1), z], 1)[:, None]
    h = x
    for k in range(3):
        p = f"diffusion.net.layers.{k}."
        gate = torch.sigmoid(
            told @ weights[p + "_hyper_gate.weight"].T + weights[p + "_hyper_gate.bias"]
        )
        linear = h @ weights[p + "_layer.weight"].T + weights[p + "_layer.bias"]
        h = linear * gate + told @ weights[p + "_hyper_bias.weight"].T
        h = torch.where(h > 0, h, 0.01 * h) if k < 2 else h
    return x + h


@pytest.mark.parametrize("flexibility", [0.0, 0.4])
def test_each_step_is_the_published_samplers(flexibility, generator):
    """x_{t-1} = (x_t - (1 - a) / sqrt(1 - A) eps) / sqrt(a) + s noise, a = 1 - beta, A = prod a."""
    weights = _published()
    levels = PointwiseLevels(STEPS, 1e-3, 0.2, flexibility)
    z = torch.randn(2, LATENT, generator=generator)
    chain = pointwise_chain(weights, points=5, levels=levels).given(z)
    beta = torch.linspace(1e-3, 0.2, STEPS, dtype=torch.float64)
    bar = (1 - beta).cumprod(0)
    x = torch.randn(2, 5, 3, generator=generator)
    for t in (6, 3, 1):
        b, before = float(beta[t - 1]), float(bar[t - 2]) if t > 1 else 1.0
        eps = _noise_by_the_paper(weights, x, torch.full((2,), b), z)
        mean = (x - b / math.sqrt(1 - float(bar[t - 1])) * eps) / math.sqrt(1 - b)
        narrow = math.sqrt((1 - before) / (1 - float(bar[t - 1])) * b)
        std = flexibility * math.sqrt(b) + (1 - flexibility) * narrow if t > 1 else 0.0
        law = chain.diffusion.reverse(chain.predict(x, t), x, t)
        assert torch.allclose(law.mean, mean, atol=1e-5)
        assert float(law.std.max()) == pytest.approx(std, abs=1e-6)


def test_clouds_are_drawn_given_their_latents(generator):
    chain = pointwise_chain(_published("net."), points=7, levels=PointwiseLevels(STEPS))
    z = torch.randn(3, LATENT, generator=generator)
    clouds = rollout(chain.given(z), 3, GeneratorNoise(generator)).x_0
    assert clouds.shape == (3, 7, 3) and bool(clouds.isfinite().all())
    with pytest.raises(InputError, match="a latent of 4 numbers"):
        rollout(chain, 3, GeneratorNoise(generator))


def test_wrong_weights_and_levels_are_named():
    with pytest.raises(InputError, match="pointwise model's state dict"):
        pointwise_chain({"a": torch.zeros(1)})
    weights = _published()
    weights["diffusion.net.layers.1._layer.weight"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointError, match="do not fit a pointwise network"):
        pointwise_chain(weights)
    weights.pop("diffusion.net.layers.0._layer.bias")
    with pytest.raises(CheckpointError, match="lacks its bias or gate"):
        pointwise_chain(weights)
    with pytest.raises(InputError, match="flexibility"):
        PointwiseLevels(flexibility=2.0)
    with pytest.raises(InputError, match="at least 1 point"):
        pointwise_chain(_published(), points=0)
