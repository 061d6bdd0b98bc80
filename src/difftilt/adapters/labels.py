"""A class condition grafted on an unconditional UNet2DModel: one posterior for all classes.

diffusers' UNet adds a class embedding to its time embedding. A trainable copy of the prior's UNet
gets one whose rows are all zero, so that every class starts exactly at the prior.

Source: the augmented model of CTRL, Zhao et al. 2024 (arXiv 2406.12120).
"""

import copy
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.denoisers import Denoiser, Level, NetworkDenoiser
from difftilt.errors import InputError
from difftilt.kernels.networks import DenoiserKernel


class LabelledDenoiser(Denoiser):
    """A denoiser whose UNet2DModel reads a class label, bound by ``given``.

    Arguments:
        base: with a UNet2DModel that has a ``class_embedding``.
        label: (B,) integers, or None until bound.
    """

    def __init__(self, base: NetworkDenoiser, label: Tensor | None = None) -> None:
        super().__init__()
        self.base = base
        self.label = label

    def forward(self, x_t: Float[Tensor, "B ..."], level: Level) -> Float[Tensor, "B ..."]:
        if self.label is None:
            raise InputError(
                "this posterior is conditioned on a class; bind one with given(torch.tensor([k]))"
            )
        label = self.label.long()

        def call(network: nn.Module, x: Tensor, time: Tensor) -> Tensor:
            dtype = next(network.parameters()).dtype
            return network(x.to(dtype), time, class_labels=label).sample.to(x.dtype)

        return self.base.calling(call)(x_t, level)

    def given(self, condition: Tensor | None) -> "LabelledDenoiser":
        return LabelledDenoiser(self.base, condition)


def labelled_copy(chain: Chain, labels: int, learned_variance: bool = False) -> DenoiserKernel:
    """A trainable copy of the prior's UNet with a zero class embedding.

    Arguments:
        chain: a chain whose network is an unconditional UNet2DModel.
        labels: number of classes, at least 1; conditions are integers 0 ... labels - 1.
        learned_variance: learn one log-scale per step.

    Raises:
        InputError: the chain's network is no UNet2DModel, or labels below 1.
    """
    from difftilt.adapters.diffusers import is_unet

    prior: Any = chain.denoiser
    if not isinstance(prior, NetworkDenoiser) or not is_unet(prior.network):
        raise InputError(
            "labels are grafted on a diffusers UNet2DModel; for a small vector use "
            "Perceptron(labels=...), for another network a DenoiserKernel with a conditional "
            "denoiser of your own"
        )
    if labels < 1:
        raise InputError(f"a class condition needs at least 1 label, got labels={labels}")
    base: Any = copy.deepcopy(prior).requires_grad_(True)
    width = base.network.time_embedding.linear_2.out_features
    embedding = nn.Embedding(labels, width)
    nn.init.zeros_(embedding.weight)
    base.network.class_embedding = embedding.to(chain.like.device)
    return DenoiserKernel(LabelledDenoiser(base), chain.diffusion, learned_variance)
