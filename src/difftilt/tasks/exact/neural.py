"""A small trained prior: the ring of eight as a network saw it.

An epsilon-network of 5,500 weights, trained for half a minute (``scripts/train_neural_ring.py``)
and shipped. Its eight sectors are not equally heavy and its log Z is not the ring's: truth has to
be taken from the chain, here by quadrature in the plane.
"""

import math
from functools import cache, partial
from importlib.resources import files

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.denoisers import NetworkDenoiser
from difftilt.tasks.exact.base import ExactProblem
from difftilt.tasks.exact.toys import plane_truth, ring_toy
from difftilt.tasks.exact.vectors import vector_chain

STEPS = 20
CLIP = 2.5
WEIGHTS = "neural_ring8.safetensors"


class NoiseMLP(nn.Module):
    """``(x, time) -> eps``: two hidden layers of 64; time as 8 sines and 8 cosines."""

    bands: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bands", math.pi * 2.0 ** torch.arange(-1, 7), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 + 16, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x: Float[Tensor, "B 2"], time: Float[Tensor, " B"]) -> Float[Tensor, "B 2"]:
        angles = time[:, None] * self.bands
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))


def ring_chain(network: NoiseMLP) -> Chain:
    """The chain of an epsilon-network on the scaled ring; N = 20, clean prediction clipped."""
    denoiser = NetworkDenoiser(network, "epsilon")
    return vector_chain(denoiser, torch.linspace(7.0, -9.0, STEPS), 2, clip=CLIP)


def _trained() -> NoiseMLP:
    from safetensors.torch import load

    network = NoiseMLP()
    weights = files("difftilt.tasks.exact").joinpath("data", WEIGHTS).read_bytes()
    network.load_state_dict(load(weights))
    return network.eval().requires_grad_(False)


@cache
def neural_ring8(alpha: float = 10.0) -> ExactProblem:
    """The trained ring, ``log r = alpha (k / 7 - 1)`` with k the nearest centre."""
    toy = ring_toy()
    chain, log_reward = ring_chain(_trained()), partial(toy.log_reward, beta=alpha)
    truth = plane_truth(chain, log_reward, toy.cell, toy.labels)
    summary = "a small network trained on eight Gaussians on a ring; the chain is the truth"
    return ExactProblem("neural_ring8", summary, chain, log_reward, 0.0, truth)
