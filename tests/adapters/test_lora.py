"""Adapters: the posterior starts at the prior, and the prior stays the prior, to the bit."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from difftilt.adapters.diffusers import chain_from_pipeline
from difftilt.adapters.lora import ATTENTION, lora, plain_copy
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import backward, log_ratio
from difftilt.denoisers import Denoiser, Level, NetworkDenoiser
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.kernels.networks import DenoiserKernel
from difftilt.noise import GeneratorNoise
from difftilt.schedules import VariancePreserving


class Perceptron(nn.Module):
    """A small network of state and time; fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)
        self.fails = False

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(torch.cat([x, time[:, None]], 1)))
        if self.fails:
            raise RuntimeError("out of order")
        return self.last(hidden)


def vector_chain() -> Chain:
    network = Perceptron().requires_grad_(False)
    diffusion = GaussianDiffusion(VariancePreserving().levels(6))
    return Chain(NetworkDenoiser(network, "sample"), diffusion, (2,))


@pytest.fixture
def image_chain(tiny_pipeline) -> Chain:
    return chain_from_pipeline(tiny_pipeline, steps=5).chain


def states(chain: Chain, batch: int = 4) -> Tensor:
    return rollout(chain, batch, GeneratorNoise(torch.Generator().manual_seed(3))).states


def train(chain: Chain, kernel: DenoiserKernel, steps: int = 3) -> Chain:
    posterior = chain.tilted(kernel)
    optimizer = torch.optim.Adam(kernel.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        backward(posterior, rollout(posterior, 4), torch.tensor([1.0, -1.0, 2.0, 0.5]), chunk=7)
        optimizer.step()
    return posterior


@pytest.mark.parametrize("targets", [ATTENTION, "all"])
def test_starts_at_the_prior_to_the_bit(image_chain: Chain, targets):
    before = states(image_chain)
    posterior = image_chain.tilted(lora(image_chain, rank=2, targets=targets))
    path = rollout(posterior, 4, GeneratorNoise(torch.Generator().manual_seed(3)))
    assert torch.equal(path.states, before)
    assert torch.equal(path.log_ratio, torch.zeros(4))


def test_the_prior_stays_the_prior_to_the_bit(image_chain: Chain):
    before = states(image_chain)
    weights = {id(p): p.clone() for p in image_chain.denoiser.parameters()}
    posterior = train(image_chain, lora(image_chain, rank=2, targets="all"))
    assert torch.equal(states(image_chain), before)
    assert torch.equal(states(posterior.prior), before)
    assert not torch.equal(states(posterior), before)
    kept = [p for p in image_chain.denoiser.parameters() if id(p) in weights]
    assert len(kept) == len(weights)  # the very same weights: no copy was made
    assert all(torch.equal(p, weights[id(p)]) and p.grad is None for p in kept)


def test_the_prior_stays_the_prior_when_the_network_fails():
    chain = vector_chain()
    before = states(chain)
    posterior = train(chain, lora(chain, rank=2, targets="all"))
    after = states(posterior)
    network = chain.denoiser.network
    network.fails = True
    with pytest.raises(RuntimeError, match="out of order"):
        posterior.tilt(torch.zeros(4, 2), 3, torch.zeros(4, 2))
    network.fails = False
    assert torch.equal(states(chain), before)
    assert torch.equal(states(posterior), after)


def test_a_waiting_graph_survives_the_prior():
    """The prior runs between the posterior's forward and its backward, as in every update."""
    chain = vector_chain()
    kernel = lora(chain, rank=2, targets="all")
    posterior = train(chain, kernel)
    path = rollout(posterior, 4)

    def gradient(interrupt: bool) -> Tensor:
        kernel.zero_grad()
        total = log_ratio(posterior, path).sum()
        if interrupt:
            states(chain)
        total.backward()
        return torch.cat([p.grad.flatten() for p in kernel.parameters()])

    assert torch.equal(gradient(interrupt=True), gradient(interrupt=False))
    assert float(gradient(interrupt=False).abs().max()) > 0


def test_parameters_and_state_are_the_adapters_alone(image_chain: Chain):
    kernel = lora(image_chain, rank=2)
    # Attentions of 16 channels: one in the down block, one in the middle, two in the up block.
    assert sum(p.numel() for p in kernel.parameters()) == 4 * 4 * 2 * (16 + 16)
    assert all(p.requires_grad for p in kernel.parameters())
    assert {k.rsplit("/")[-1] for k in kernel.state_dict()} == {"lora_A", "lora_B"}


def test_a_saved_state_brings_the_posterior_back(image_chain: Chain, tiny_unet):
    posterior = train(image_chain, lora(image_chain, rank=2))
    saved = {name: value.clone() for name, value in posterior.kernel.state_dict().items()}

    class Fresh:
        unet, scheduler = tiny_unet(), DDPMScheduler()

    fresh = chain_from_pipeline(Fresh(), steps=5).chain
    kernel = lora(fresh, rank=2)
    kernel.load_state_dict(saved)
    assert torch.equal(states(fresh.tilted(kernel)), states(posterior))


def test_two_posteriors_share_one_prior():
    chain = vector_chain()
    before = states(chain)
    one = train(chain, lora(chain, rank=2, targets="all"))
    drawn = states(one)
    other = lora(chain, rank=1, targets=("first",))
    assert torch.equal(states(chain.tilted(other)), before)
    train(chain, other)
    assert torch.equal(states(one), drawn)
    assert torch.equal(states(chain), before)
    shared = {id(p) for p in one.kernel.parameters()} & {id(p) for p in other.parameters()}
    assert not shared


def test_a_copied_kernel_is_the_same_posterior():
    chain = vector_chain()
    posterior = train(chain, lora(chain, rank=2, targets="all"))
    drawn = states(posterior)
    kernel = copy.deepcopy(posterior.kernel)
    train(chain, posterior.kernel)
    assert torch.equal(states(chain.tilted(kernel)), drawn)


def test_train_mode_does_not_reach_the_prior(image_chain: Chain):
    kernel = lora(image_chain, rank=2)
    kernel.train()
    assert not any(module.training for module in image_chain.denoiser.network.modules())


def test_scale_is_alpha_over_rank():
    chain = vector_chain()
    one, two = (
        lora(chain, rank=4, alpha=a, targets="all", generator=torch.Generator().manual_seed(1))
        for a in (4.0, 8.0)
    )
    for kernel, strength in ((one, 2.0), (two, 1.0)):
        with torch.no_grad():
            for name, weight in kernel.named_parameters():
                if name.endswith("lora_B"):
                    weight.fill_(0.1 * strength)
    x, level = torch.randn(3, 2), Level(0.5, 0.6, 0.8)
    assert torch.allclose(one.denoiser(x, level), two.denoiser(x, level), atol=1e-6)
    assert not torch.allclose(one.denoiser(x, level), chain.denoiser(x, level), atol=1e-2)


def test_initial_weights_come_from_the_generator():
    def weights(seed: int) -> Tensor:
        kernel = lora(vector_chain(), 2, targets="all", generator=_generator(seed))
        return torch.nn.utils.parameters_to_vector(kernel.parameters())

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))
    chain, state = vector_chain(), torch.random.get_rng_state()
    lora(chain, 2, targets="all", generator=_generator(5))
    assert torch.equal(torch.random.get_rng_state(), state)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Shifted(Denoiser):
    """A denoiser of our own kind around a network, conditioned on a shift."""

    def __init__(self, network: nn.Module, shift: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.shift = shift

    def forward(self, x_t: Tensor, level: Level) -> Tensor:
        x_t = x_t if self.shift is None else x_t + self.shift
        return self.network(x_t)

    def given(self, condition: Tensor | None) -> "Shifted":
        return Shifted(self.network, condition)


def test_a_condition_reaches_the_adapted_network():
    prior = Shifted(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)))
    chain = Chain(prior, GaussianDiffusion(VariancePreserving().levels(4)), (2,))
    shift = torch.tensor([[0.0, 0.0], [3.0, -3.0]])
    posterior = chain.given(shift).tilted(lora(chain, rank=2, targets="all"))
    first = rollout(posterior, 2, GeneratorNoise(_generator(0)))
    assert torch.equal(first.log_ratio, torch.zeros(2))
    kernel = posterior.kernel
    x, level = torch.ones(2, 2), Level(0.5, 0.6, 0.8)
    assert torch.equal(kernel.denoiser.given(shift)(x, level), prior.given(shift)(x, level))
    assert not torch.equal(kernel.denoiser.given(shift)(x, level), kernel.denoiser(x, level))


def test_targets_are_matched_by_their_ending():
    chain = vector_chain()
    assert list(lora(chain, 1, targets=("last",)).denoiser.layers) == ["network.last"]
    assert list(lora(chain, 1, targets="first").denoiser.layers) == ["network.first"]
    assert len(lora(chain, 1, targets="all").denoiser.layers) == 2


def test_all_covers_convolutions(image_chain: Chain):
    layers = lora(image_chain, 1, targets="all").denoiser.layers
    assert {"network.conv_in", "network.conv_out"} <= set(layers)
    assert len(layers) == sum(
        type(m.get_base_layer()) in (nn.Linear, nn.Conv2d) for m in layers.values()
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"targets": ("first", "to_q")}, r"\['to_q'\] name no Linear .* which has first, last"),
        ({"targets": ()}, "which has first, last; choose among them"),
        ({"targets": "all", "rank": 0}, "rank >= 1 and alpha > 0, got rank=0"),
        ({"targets": "all", "alpha": -1.0}, "alpha=-1.0"),
    ],
)
def test_bad_settings_are_said(settings: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        lora(vector_chain(), **({"rank": 2} | settings))


def test_a_plain_copy_has_one_adapter_merged():
    chain = vector_chain()
    one = train(chain, lora(chain, rank=2, targets="all"))
    train(chain, lora(chain, rank=2, targets=("last",)))
    network, before = chain.denoiser.network, states(chain)
    merged = plain_copy(network, one.kernel.denoiser.adapter)
    assert {type(m) for m in merged.modules()} == {Perceptron, nn.Linear}
    as_chain = replace(chain, denoiser=NetworkDenoiser(merged, "sample"))
    # The last step is a map, which a posterior takes by the prior's network.
    assert torch.allclose(states(as_chain)[1:], states(one)[1:], rtol=0, atol=1e-5)
    bare = replace(chain, denoiser=NetworkDenoiser(plain_copy(network), "sample"))
    assert torch.equal(states(bare), before)
    assert torch.equal(states(chain), before)
