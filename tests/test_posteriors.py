"""The face of the package on problems of one or two numbers with closed forms."""

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

import difftilt
from difftilt.posteriors import Posterior, Prior
from toys import Likelihood, gaussian_chain

SCHEDULES = {
    "preserving": difftilt.VariancePreserving(),
    "exploding": difftilt.VarianceExploding(),
    "flow": difftilt.RectifiedFlow(),
}
QUICK = {"steps": 4, "batch": 32}


class Network(nn.Module):
    """A small network of state and time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.layers(torch.cat([x, time[:, None]], 1))


def right(x_0: Tensor) -> Tensor:
    return -torch.relu(-x_0[:, 0])


def small_prior(schedule: str = "preserving") -> Prior:
    return difftilt.load(Network(), 5, schedule=SCHEDULES[schedule], event_shape=(2,))


@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf, "0"])
def test_a_bound_is_a_finite_number(bound):
    tilt = inspect.unwrap(Prior.tilt)  # past the type checker of the tests
    with pytest.raises(difftilt.InputError, match=f"log_bound is {bound!r}; give a finite number"):
        tilt(small_prior(), right, 1.0, bound)


@pytest.mark.parametrize("beta", ["1", None])
def test_beta_is_a_number(beta):
    with pytest.raises(difftilt.InputError, match=f"positive finite number, got {beta!r}"):
        inspect.unwrap(Prior.tilt)(small_prior(), right, beta)


def untrained() -> tuple[Posterior, Likelihood]:
    """The untrained posterior of the Gaussian toy, equal to its prior."""
    reward = Likelihood()
    target = Prior(gaussian_chain()).tilt(reward)
    return target.posterior(difftilt.Perceptron(components=1)), reward


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_loaded_tilted_fitted_and_certified(schedule: str):
    target = small_prior(schedule).tilt(right, log_bound=0.0)
    posterior = target.fit(difftilt.RTB(), **QUICK)
    x = posterior.sample(6)
    assert x.shape == (6, 2)
    assert x.isfinite().all()
    certificate = posterior.certify(400)
    assert certificate.n == 400
    assert certificate.log_bound == 0.0
    assert certificate.elbo.value <= certificate.eubo.value
    assert certificate.defensive.best.value <= 0


def test_a_sample_does_not_depend_on_how_many_are_drawn():
    posterior = small_prior().tilt(right).posterior()
    torch.testing.assert_close(posterior.sample(3, seed=5), posterior.sample(64, seed=5)[:3])
    assert not torch.allclose(posterior.sample(3, seed=6), posterior.sample(3, seed=5))


def test_the_untrained_posterior_is_the_prior_to_the_bit():
    prior = small_prior()
    target = prior.tilt(right)
    for form in (difftilt.FullCopy(), difftilt.Perceptron(components=1)):
        posterior = target.posterior(form, initial=True)
        assert torch.equal(posterior.sample(16), prior.sample(16))


def test_the_law_of_the_noise_is_learned_where_wanted():
    target = small_prior().tilt(right)
    posterior = target.fit(initial=True, **QUICK)
    assert posterior.chain.initial is not None
    assert posterior.chain.initial.delta.abs().max() > 0
    assert target.fit(**QUICK).chain.initial is None


def test_small_vectors_get_a_perceptron_and_images_a_copy():
    assert isinstance(small_prior().tilt(right).posterior().form, difftilt.Perceptron)
    image = difftilt.load(
        nn.Identity(), 3, schedule=difftilt.VariancePreserving(), event_shape=(1, 8, 8)
    )
    assert isinstance(image.tilt(right).posterior().form, difftilt.FullCopy)


def test_a_declared_bound_is_checked_on_every_call():
    target = small_prior().tilt(lambda x_0: x_0[:, 0], log_bound=-100.0)
    with pytest.raises(difftilt.RewardError, match="bound"):
        target.fit(**QUICK)


def test_an_unknown_option_of_fit_is_named():
    with pytest.raises(
        difftilt.InputError, match="fit has no option 'epochs'; options are alarm, anchor"
    ):
        small_prior().tilt(right).fit(epochs=3)


def test_a_bare_network_needs_schedule_and_shape():
    with pytest.raises(difftilt.InputError, match="schedule="):
        difftilt.load(Network(), 5)


def test_what_cannot_be_exported_says_why(tmp_path):
    posterior = small_prior().tilt(right).posterior()
    with pytest.raises(difftilt.InputError, match="this prior was not loaded from one"):
        posterior.export(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("correct", ["snis", "mh", "smc"])
def test_corrected_samples_of_an_untrained_posterior_have_the_exact_mean(correct):
    """4,000 samples of effort 16: 5 standard errors; sharing proposals adds half the variance."""
    posterior, reward = untrained()
    mean, variance = reward.posterior(posterior.chain.prior)
    x = posterior.sample(4_000, seed=1, correct=correct, effort=16)[:, 0]
    raw = posterior.sample(4_000, seed=1)[:, 0]
    allowed = 5 * math.sqrt(1.5 * variance / 4_000)
    assert abs(float(x.mean()) - mean) < allowed
    assert abs(float(raw.mean()) - mean) > allowed  # the prior is somewhere else


def test_the_certificate_covers_the_closed_form():
    posterior, reward = untrained()
    certificate = posterior.certify(4_000, confidence=0.999)
    best = certificate.defensive.best
    assert best.low < reward.log_z(posterior.chain.prior) < best.high


def test_a_generator_is_tilted_in_its_noise():
    """x = A z and y = x + noise: Z is the density of y under N(0, A Aᵀ + std² I)."""
    matrix, y, std = torch.tensor([[1.0, 0.5], [0.0, 2.0]]), torch.tensor([0.8, -1.0]), 0.7
    prior = difftilt.latent(lambda z: z @ matrix.T, (2,), steps=4)
    target = prior.tilt(difftilt.GaussianLikelihood(y, lambda x: x, std))
    covariance = matrix @ matrix.T + std**2 * torch.eye(2)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), covariance)
    log_z = float(normal.log_prob(y))
    posterior = target.fit(steps=30, batch=128, initial=True)
    best = posterior.certify(4_000, confidence=0.999).defensive.best
    assert best.low < log_z < best.high
    assert best.high - best.low < 0.5
    gain = matrix @ matrix.T @ torch.linalg.inv(covariance)
    x = posterior.sample(4_000, correct="snis", effort=8)
    error = (1.5 * (gain * std**2).diagonal() / 4_000).sqrt()
    assert bool(((x.mean(0) - gain @ y).abs() < 5 * error).all())


def test_one_posterior_serves_every_label():
    """Three labels, one log Z each; their intervals at 99.9 % cover the closed forms."""
    reward = Likelihood(y=(-0.5, 0.5, 1.5))
    chain = gaussian_chain()

    def labels(count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(3, (count,), generator=generator)

    posterior = (
        Prior(chain)
        .tilt(reward)
        .fit(
            difftilt.RTB("learned"),
            sources=difftilt.Sources(conditions=labels, labels=3),
            steps=10,
            batch=96,
        )
    )
    for label in range(3):
        best = posterior.given(torch.tensor([label])).certify(2_000, confidence=0.999).defensive
        assert best.best.low < reward.log_z(chain, label) < best.best.high


def test_each_condition_has_its_certificate_and_there_is_an_average():
    """The untrained posterior: label 2 lies farthest from the prior and is the worst."""
    reward = Likelihood(y=(0.4, 0.6, 3.5))
    chain = gaussian_chain()
    posterior = Prior(chain).tilt(reward).posterior()
    found = posterior.certify_each(torch.arange(3), 400)
    assert found.names == ("0", "1", "2") and found.worst == "2"
    alone = [posterior.given(torch.tensor([k])).certify(400) for k in range(3)]
    assert [c.ess for c in found.each] == [c.ess for c in alone]
    assert found.ess == pytest.approx(sum(c.ess for c in alone) / 3)
    bounds = [c.total_variation.upper for c in alone]
    assert found.total_variation == pytest.approx(sum(bounds) / 3)
    assert found.trust == all(c.trust for c in alone)
    assert set(found.to_dict()) == {"verdict", "trust", "average", "worst", "each"}
    *lines, average = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert average.startswith("average  ESS") and average.endswith("worst: 2")
