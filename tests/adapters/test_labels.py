"""One posterior for all classes of an unconditional UNet, each class started at the prior."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import difftilt
from difftilt.adapters.labels import labelled_copy
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.errors import InputError
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


def test_a_class_has_the_law_of_its_own_row():
    """Row 0 stays zero and class 0 the prior, to the bit; row 1 has moved."""
    target = difftilt.load(pipeline(), steps=4).tilt(lambda x: 5 * x.mean((1, 2, 3)))
    posterior = target.posterior(difftilt.FullCopy(labels=2))
    weight = posterior.chain.kernel.denoiser.base.network.class_embedding.weight  # type: ignore
    with torch.no_grad():
        weight[1] = 0.1
    first, second = (posterior.given(torch.tensor([k])) for k in (0, 1))
    assert torch.equal(first.sample(3), target.prior.sample(3))
    assert not torch.allclose(second.sample(3), target.prior.sample(3), atol=1e-3)
    found = posterior.certify_each(torch.arange(2), 32)
    assert found.each[0].log_z.value == first.certify(32).log_z.value
    assert found.each[0].ess > found.each[1].ess


def test_what_cannot_be_grafted_is_named():
    with pytest.raises(InputError, match="labels are grafted on a diffusers UNet2DModel"):
        labelled_copy(prior(), 2)
    chain = difftilt.load(pipeline(), steps=4).chain
    with pytest.raises(InputError, match="at least 1 label, got labels=0"):
        labelled_copy(chain, 0)
    unbound = chain.tilted(labelled_copy(chain, 2))
    with pytest.raises(InputError, match="conditioned on a class; bind one"):
        rollout(unbound, 2, noise())
