"""Diffusion policies: noise at the end, exact tilts under bounded actions, files, fast draws."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from difftilt.adapters.actions import bounded, log_stretch, unbounded
from difftilt.adapters.foreign_policies import LAYOUTS, foreign_policy, load_tensors
from difftilt.adapters.policies import (
    FOLDER,
    DiffusionPolicy,
    PolicyDenoiser,
    load_policy,
    new_policy,
)
from difftilt.adapters.policy_config import PolicyConfig
from difftilt.chains.rollouts import rollout
from difftilt.errors import CheckpointError, InputError
from difftilt.kernels.networks import full_copy, untilted
from difftilt.models.residual import ResidualSize
from difftilt.noise import GeneratorNoise

pytest.importorskip("diffusers")
CONFIG, WEIGHTS = FOLDER.files
SIZE = ResidualSize(width=16, blocks=2, expansion=2, embedding=8)
CONFIG_5_2 = PolicyConfig(5, 2, SIZE)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "vp_linear"])
def test_the_last_level_is_noise_and_every_step_has_a_density(schedule):
    chain = new_policy(replace(CONFIG_5_2, schedule=schedule)).chain(12)
    levels = chain.gaussian.levels
    assert float((levels.alpha[-1] / levels.sigma[-1]) ** 2) < 1e-3
    assert float(levels.time[-1]) == 999
    assert chain.density_steps == list(range(1, 13))
    assert new_policy(CONFIG_5_2).chain(1000).steps == 1000
    assert chain.gaussian.base_std == pytest.approx(1.0, abs=1e-6)


def test_a_schedule_that_keeps_the_signal_is_refused():
    """75 steps of beta up to 0.02: the product of 1 - beta is 0.45."""
    with pytest.raises(InputError, match=r"ratio of 0\.8"):
        PolicyConfig(5, 2, SIZE, training_steps=75)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: PolicyConfig(5, 2, bound="tahn"), "unknown bound 'tahn' of a policy; choose one"),
        (lambda: PolicyConfig(5, 2, schedule="foo"), "unknown schedule 'foo' of a policy"),
        (lambda: ResidualSize(width=0), "width and expansion >= 1"),
        (lambda: ResidualSize(blocks=-1), "blocks >= 0"),
        (lambda: ResidualSize(activation="tanh"), "choose silu or mish"),  # pyright: ignore[reportArgumentType]
        (lambda: ResidualSize(embedding=7), "embedding=7 of the time must be even"),
    ],
)
def test_wrong_words_and_sizes_are_refused_where_they_are_named(wrong, words, unchecked):
    with pytest.raises(InputError, match=words):
        wrong()


def test_the_continuous_schedule_is_met_at_every_time():
    squared = PolicyConfig(1, 1, SIZE, "vp_linear").scheduler().alphas_cumprod.double()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(squared, torch.exp(-0.1 * t - 9.95 * t**2), rtol=2e-4)


class GaussianNoise(nn.Module):
    """The exact noise prediction where u ~ N(mean(s), std²), on the scheduler's levels."""

    def __init__(self, config: PolicyConfig, std: float) -> None:
        super().__init__()
        self.squared, self.std = config.scheduler().alphas_cumprod, std
        self.first = nn.Linear(1, 1)

    def forward(self, x: Tensor, time: Tensor, state: Tensor) -> Tensor:
        squared = self.squared[time.long()][:, None]
        variance = squared * self.std**2 + 1 - squared
        mean = 0.5 * state.sum(1, keepdim=True)
        return (1 - squared).sqrt() * (x - squared.sqrt() * mean) / variance


@pytest.mark.usefixtures("unchecked")
def test_both_samplers_find_a_gaussian_behaviour(generator):
    """The chain is exact at any N (5 standard errors); the solver's deviation to a twentieth."""
    config = PolicyConfig(2, 1, SIZE)
    policy = DiffusionPolicy(GaussianNoise(config, 0.3), config)  # type: ignore[arg-type]
    some = torch.randn(4096, 2, generator=generator)
    x_0 = 0.5 * some.sum(1, keepdim=True) + 0.3 * torch.randn(4096, 1, generator=generator)
    states, n = torch.tensor([[0.2, 0.4], [-1.0, 0.2]]), 4000
    rows, noise = states.repeat_interleave(n, 0), GeneratorNoise(generator)
    measured = policy.measured(some, x_0, generator)
    error = 5 * 0.3 / n**0.5
    for steps in (4, 12):
        drawn = rollout(measured.chain(steps).given(rows), 2 * n, noise, ratio=False).x_0.view(2, n)
        assert drawn.mean(1).tolist() == pytest.approx([0.3, -0.4], abs=error)
        # Half a percent for the measured error of the noise.
        assert drawn.std(1).tolist() == pytest.approx([0.3, 0.3], abs=error / 2**0.5 + 0.003)
    narrow = rollout(policy.chain(12).given(rows), 2 * n, noise, ratio=False).x_0
    assert float(narrow[:n].std()) < 0.28
    fast = policy.support(states, n, generator, steps=15)[:, :, 0]
    assert fast.mean(1).tolist() == pytest.approx([0.3, -0.4], abs=error + 0.005)
    assert fast.std(1).tolist() == pytest.approx([0.3, 0.3], rel=0.05)


def test_a_posterior_starts_at_the_policy_and_may_read_more(generator):
    chain = new_policy(CONFIG_5_2).chain(6, further=1)
    states = torch.randn(8, 6, generator=generator)
    posterior = chain.tilted(full_copy(chain)).given(states)
    path = rollout(posterior, 8, GeneratorNoise(generator))
    assert path.log_ratio is not None and float(path.log_ratio.abs().max()) == 0.0
    kernel = posterior.kernel
    denoiser = kernel.denoiser  # type: ignore[union-attr]
    assert isinstance(denoiser, PolicyDenoiser) and denoiser.observations == 6


def test_a_trained_copy_is_a_chain_of_its_own(generator):
    """The same draws from the same noise, with one network call per step instead of two."""
    chain = new_policy(CONFIG_5_2).chain(6)
    kernel = full_copy(chain)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    states = torch.randn(8, 5, generator=generator)
    tilted = chain.tilted(kernel).given(states)
    one = rollout(tilted, 8, GeneratorNoise(torch.Generator().manual_seed(3)))
    before = chain.calls.total
    own = rollout(untilted(tilted), 8, GeneratorNoise(torch.Generator().manual_seed(3)))
    assert torch.allclose(own.x_0, one.x_0, rtol=1e-3, atol=1e-4)
    assert chain.calls.total - before == 6 * 8
    with pytest.raises(InputError, match="is a chain by itself"):
        untilted(chain.tilted(full_copy(chain, learned_variance=True)))


def test_the_tilt_of_bounded_actions_needs_no_jacobian():
    """Images of ``p(x) exp(Q(tanh x))`` and ``μ(a) exp(Q(a))``, by quadrature in 1-D."""
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64)[:, None]
    a, step = bounded(x, "tanh"), float(x[1] - x[0])
    log_p = -0.5 * ((x[:, 0] - 0.4) / 0.7) ** 2
    q = 2.0 * a[:, 0] - a[:, 0] ** 2
    tilted = torch.softmax(log_p + q, 0) / step
    log_mu = log_p - log_stretch(x)
    # On the grid of x, da = (1 - a²) dx: the law of actions, normalised over actions.
    stretch = log_stretch(x).exp()
    z = (torch.exp(log_mu + q) * stretch).sum() * step
    of_actions = torch.exp(log_mu + q) / z
    assert torch.allclose(of_actions * stretch, tilted, rtol=1e-9)
    as_density = torch.softmax(log_p + q + log_stretch(x), 0) / step
    assert float((as_density - tilted).abs().sum() * step / 2) > 0.05


def test_bounds_there_and_back(generator):
    actions = 2 * torch.rand(50, 3, generator=generator) - 1
    assert torch.equal(bounded(unbounded(actions, "clip"), "clip"), actions)
    inside = 0.98 * actions
    assert torch.allclose(bounded(unbounded(inside, "tanh"), "tanh"), inside, atol=1e-6)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(log_stretch(x), (1 - x.tanh() ** 2).log().sum(1), atol=1e-12)
    for wrong in (torch.tensor([[1.2]]), torch.tensor([[torch.nan]])):
        with pytest.raises(InputError, match="must lie in"):
            unbounded(wrong, "clip")


def test_a_saved_policy_is_the_same_policy(tmp_path, generator):
    policy = new_policy(replace(CONFIG_5_2, bound="tanh"), seed=3)
    policy.network.standardised_by(torch.randn(20, 5, generator=generator))
    data = torch.randn(20, 7, generator=generator)
    policy = policy.measured(data[:, :5], data[:, 5:], generator)
    folder = policy.save(tmp_path / "policy")
    assert sorted(f.name for f in folder.iterdir()) == [CONFIG, WEIGHTS]
    again = load_policy(folder)
    assert again.error is not None and torch.equal(again.error, policy.error)
    assert again.config == policy.config and again.fingerprint == policy.fingerprint
    policy.save(folder)
    config = json.loads((folder / CONFIG).read_text())
    del config["config"]["size"]["activation"]
    (folder / CONFIG).write_text(json.dumps(config))
    assert load_policy(folder).config.size.activation == "mish"  # as before there was a choice
    config["config"]["actions"] = 3
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_policy(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="no readable"):
        load_policy(folder)


def test_a_policy_needs_states():
    chain = new_policy(CONFIG_5_2).chain(3)
    with pytest.raises(InputError, match="bind states"):
        rollout(chain, 2)
    with pytest.raises(InputError, match="5 numbers"):
        rollout(chain.given(torch.zeros(2, 3)), 2)
    with pytest.raises(InputError, match="steps=1001"):
        new_policy(CONFIG_5_2).chain(1001)
    for name, value in (("observations", 0), ("final_std", 0.0)):
        with pytest.raises(InputError, match=name):
            replace(CONFIG_5_2, **{name: value})


class ForeignBlock(nn.Module):
    """A block as another library names its layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Dropout(0.1), nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Mish(),
            nn.Linear(4 * width, width),
        )  # fmt: skip


class Foreign(nn.Module):
    """The residual perceptron of IDQL, written independently of ours."""

    def __init__(self, observations: int, actions: int, embedding: int, width: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.time_mlp = nn.Sequential(
            nn.Linear(embedding, 2 * embedding), nn.Mish(), nn.Linear(2 * embedding, embedding)
        )
        self.affine_in = nn.Linear(observations + actions + embedding, width)
        self.ln_resnet = nn.Sequential(*(ForeignBlock(width) for _ in range(3)))
        self.affine_out = nn.Linear(width, actions)

    def forward(self, x: Tensor, time: Tensor, state: Tensor) -> Tensor:
        half = self.embedding // 2
        angles = torch.outer(time, 10_000.0 ** (-torch.arange(half) / half))
        h = self.affine_in(
            torch.cat([x, self.time_mlp(torch.cat([angles.cos(), angles.sin()], 1)), state], 1)
        )
        for block in self.ln_resnet:
            h = h + block.net(h)
        return self.affine_out(h)


def test_a_policy_of_another_library_says_what_it_said(tmp_path, generator):
    foreign = Foreign(5, 2, 8, 16).eval()
    file = tmp_path / "diffusion.pt"
    named = {f"diffusion.{k}": v for k, v in foreign.state_dict().items()}
    torch.save({"model": {}, "model_ema": named}, file)
    policy = foreign_policy(load_tensors(file), schedule="vp_linear", unit_time=True)
    assert (policy.config.observations, policy.config.actions) == (5, 2)
    assert policy.config.size == ResidualSize(16, 3, 4, 8, "mish")
    x, state = torch.randn(7, 2, generator=generator), torch.randn(7, 5, generator=generator)
    time = torch.rand(7, generator=generator)
    assert torch.allclose(policy.network(x, time, state), foreign(x, time, state), atol=1e-5)
    prior = policy.chain(5)
    told = prior.denoiser.given(state)(x, prior.gaussian.level(5, x))
    level = prior.gaussian.level(5, x)
    noise = foreign(x, torch.ones(7), state)
    assert torch.allclose(told, (x - level.sigma * noise) / level.alpha, rtol=1e-3, atol=1e-2)


def test_foreign_weights_that_do_not_fit_are_named(tmp_path):
    weights = dict(Foreign(5, 2, 8, 16).state_dict())
    with pytest.raises(InputError, match="unknown layout"):
        foreign_policy(weights, "another")
    with pytest.raises(InputError, match="affine_in"):
        foreign_policy({"layer.weight": torch.zeros(2, 2)})
    less = {k: v for k, v in weights.items() if not k.startswith("time_mlp.2")}
    with pytest.raises(InputError, match=r"time_mlp\.2"):
        foreign_policy(less)
    wrong = {**weights, "ln_resnet.1.net.2.weight": torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match="do not fit"):
        foreign_policy(wrong)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(InputError, match="no readable file"):
        load_tensors(broken)


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("affine_in.weight", (4, 4, 4), 2),
        ("affine_in.weight", (16,), 2),
        ("affine_in.weight", (0, 15), 2),
        ("affine_out.bias", (), 1),
        ("time_mlp.2.bias", (2, 4), 1),
        ("ln_resnet.0.net.1.weight", (16, 16), 1),
        ("ln_resnet.0.net.2.bias", (), 1),
    ],
)
def test_foreign_layers_of_a_wrong_shape_are_named(name: str, shape: tuple[int, ...], axes: int):
    weights = {**Foreign(5, 2, 8, 16).state_dict(), name: torch.zeros(shape)}
    with pytest.raises(InputError, match=rf"{name} must have {axes} axes of floats"):
        foreign_policy(weights)


def test_foreign_sizes_that_no_network_has_are_named():
    weights = dict(Foreign(5, 2, 8, 16).state_dict())
    with pytest.raises(InputError, match="the blocks are 40 wide in a stream of 16"):
        foreign_policy({**weights, "ln_resnet.0.net.2.bias": torch.zeros(40)})
    with pytest.raises(InputError, match="the time becomes 7 numbers"):
        foreign_policy({**weights, "time_mlp.2.bias": torch.zeros(7)})
    with pytest.raises(InputError, match="there is no state"):
        foreign_policy({**weights, "affine_in.weight": torch.zeros(16, 10)})


@pytest.mark.parametrize(
    ("held", "remark"),
    [
        (torch.zeros(3), "and is a Tensor"),
        ([torch.zeros(3)], "and is a list"),
        ({"model_ema": torch.zeros(3)}, "and is a Tensor"),
        ({"model": {"a": torch.zeros(3), "epoch": 4}}, "under 'epoch' has a int"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_file_of_something_else_is_one_sentence(tmp_path, held, remark: str):
    file = tmp_path / "weights.pt"
    torch.save(held, file)
    with pytest.raises(InputError, match=rf"weights\.pt must hold tensors by name .* {remark}"):
        load_tensors(file)


@pytest.mark.usefixtures("unchecked")
def test_a_foreign_policys_options_are_checked():
    weights = dict(Foreign(5, 2, 8, 16).state_dict())
    with pytest.raises(InputError, match=r"weights must hold tensors by name .* under 'model'"):
        foreign_policy({"model": weights})  # type: ignore[dict-item]
    for states in (torch.zeros(9, 4), torch.zeros(9), torch.zeros(1, 5)):
        with pytest.raises(InputError, match=r"states of 5 numbers; standardise it by states"):
            foreign_policy(weights, states=states)
    with pytest.raises(InputError, match="a state is not finite"):
        foreign_policy(weights, states=torch.full((9, 5), torch.nan))
    for option in ("foo", "observations"):
        with pytest.raises(InputError, match=f"unknown option '{option}'"):
            foreign_policy(weights, **{option: 3})
    for option in ("schedule", "bound"):
        with pytest.raises(InputError, match=f"unknown {option} 'foo'"):
            foreign_policy(weights, **{option: "foo"})


def test_a_foreign_layout_is_complete():
    weights, known = dict(Foreign(5, 2, 8, 16).state_dict()), LAYOUTS["cleandiffuser"]
    same = foreign_policy(weights, dict(known))
    assert same.fingerprint == foreign_policy(weights).fingerprint
    for layout, remark in (
        ({"first": "affine_in"}, "the layout lacks"),
        ({**known, "second": "affine_in"}, "has an unknown layer 'second'"),
        ({**known, "blocks.{k}.layers.0": "ln_resnet.0.net.1"}, "the number of a block"),
        ({**known, "last": 3}, "the layout names 'last' 3"),
    ):
        with pytest.raises(InputError, match=remark):
            foreign_policy(weights, layout)  # type: ignore[arg-type]
