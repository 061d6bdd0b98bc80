"""One posterior for all classes of an unconditional UNet, each class started at the prior."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

import difftilt
from difftilt.adapters.labels import labelled_copy
from difftilt.errors import InputError
from difftilt.rollouts import rollout
from difftilt.scoring import log_ratio
from small_chains import noise, prior


def pipeline() -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return DDPMPipeline(unet, DDPMScheduler())  # type: ignore[arg-type]


def brightness(x_0: Tensor, condition: Tensor) -> Tensor:
    """Class 0 wants dark pictures, class 1 bright ones."""
    return 20 * (2 * condition - 1) * x_0.mean((1, 2, 3))


def labels(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count,), generator=generator)


def test_every_class_starts_at_the_prior_and_has_its_own_gradient():
    chain = difftilt.load(pipeline(), steps=4).chain.given(torch.tensor([0, 1, 1]))
    posterior = chain.tilted(labelled_copy(chain, 2))
    path = rollout(posterior, 3, noise())
    assert path.log_ratio is not None and path.log_ratio.tolist() == [0.0, 0.0, 0.0]
    (log_ratio(posterior, path)[:1].sum()).backward()
    embedding = posterior.kernel.denoiser.base.network.class_embedding.weight  # type: ignore
    assert embedding.shape == (2, 32)
    assert float(embedding.grad[0].abs().sum()) > 0 == float(embedding.grad[1].abs().sum())
    assert all(p.grad is None for p in chain.denoiser.parameters())


def test_one_fit_serves_both_classes():
    """After a short training the classes part by more than the prior's own spread."""
    target = difftilt.load(pipeline(), steps=4).tilt(brightness)
    posterior = target.fit(
        difftilt.RTB("learned"),
        form=difftilt.FullCopy(labels=2),
        sources=difftilt.Sources(conditions=labels, labels=2),
        steps=80,
        batch=16,
        warm_start=0.0,
        behaviour=difftilt.BehaviourWeights(on_policy=1.0, pool=0.0),
        optimisation=difftilt.Optimisation(learning_rate=1e-2, ema=0.0),
    )
    spread = float(target.prior.sample(64).mean((1, 2, 3)).std())
    dark, bright = (posterior.given(torch.tensor([k])).sample(16).mean() for k in (0, 1))
    assert float(bright - dark) > spread
    found = posterior.certify_each(torch.arange(2), 32)
    assert found.names == ("0", "1")


def test_what_cannot_be_grafted_is_named():
    with pytest.raises(InputError, match="labels are grafted on a diffusers UNet2DModel"):
        labelled_copy(prior(), 2)
    chain = difftilt.load(pipeline(), steps=4).chain
    with pytest.raises(InputError, match="at least 1 label, got labels=0"):
        labelled_copy(chain, 0)
    unbound = chain.tilted(labelled_copy(chain, 2))
    with pytest.raises(InputError, match="conditioned on a class; bind one"):
        rollout(unbound, 2, noise())
