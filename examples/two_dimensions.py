"""A prior in the plane, a likelihood, and a posterior whose truth is known.

The prior is a mixture of four Gaussians. A diffusion model of it needs no training: the best
prediction of the clean sample, ``E[x_0 | x_t]``, has a closed form, and any network that is called
as ``network(x, time)`` can be a prior. The reward is a likelihood, ``r = p(y | x) / max``, so
``log r <= 0``: with such a bound the certificate proves something instead of estimating it.

What happens:

1. ``load`` makes a chain of 20 steps of the network, ``tilt`` names the posterior p(x) r(x) / Z;
2. ``fit`` trains a sampler of it by relative trajectory balance;
3. ``certify`` says how near it is, from its own paths and from the prior's, which miss no mode;
4. ``sample(correct="snis")`` removes the error that is left, by importance weights.

Because r is at most 1, prior samples that are accepted with probability r are exact: the truth.

    python examples/two_dimensions.py
"""

import torch
from torch import Tensor, nn

import difftilt

CENTRES = torch.tensor([[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]])
SPREAD = 0.4
SCHEDULE = difftilt.VariancePreserving()


class Mixture(nn.Module):
    """``E[x_0 | x_t]`` for data from four Gaussians, where ``x_t = alpha x_0 + sigma eps``."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = (scale[:, None, None] for scale in SCHEDULE.alpha_sigma(time))
        variance = (alpha * SPREAD) ** 2 + sigma**2
        distance = x[:, None] - alpha * CENTRES
        share = torch.softmax(-(distance**2).sum(2) / (2 * variance[:, :, 0]), 1)
        guess = CENTRES + alpha * SPREAD**2 / variance * distance
        return (share[:, :, None] * guess).sum(1)


def log_reward(x_0: Tensor) -> Tensor:
    """One coordinate was measured: x[0] + x[1] = 0.5 with an error of 0.7. At most 0, in nats."""
    return -((x_0.sum(1) - 0.5) ** 2) / (2 * 0.7**2)


def mode_shares(x: Tensor) -> str:
    nearest = torch.cdist(x, CENTRES).argmin(1)
    shares = torch.bincount(nearest, minlength=4) / len(x)
    return "  ".join(f"{share:.3f}" for share in shares)


def main(steps: int = 300, samples: int = 4000) -> difftilt.Certificate:
    """Train for ``steps`` updates and print the shares of the four modes."""
    torch.manual_seed(0)
    prior = difftilt.load(
        Mixture(), steps=20, schedule=SCHEDULE, event_shape=(2,), prediction_type="sample"
    )
    target = prior.tilt(log_reward, log_bound=0.0)
    posterior = target.fit(
        difftilt.RTB(residual_clip=4.0),
        steps=steps,
        optimisation=difftilt.Optimisation(hidden_learning_rate=0.01),
    )

    prior_samples = prior.sample(4 * samples, seed=1)
    accepted = torch.rand(len(prior_samples)).log() < log_reward(prior_samples)
    print("share of each mode      (-,-)  (-,+)  (+,-)  (+,+)")
    print("prior                  ", mode_shares(prior_samples))
    print("posterior, one pass    ", mode_shares(posterior.sample(samples)))
    print("posterior, corrected   ", mode_shares(posterior.sample(samples, correct="snis")))
    print("truth, by rejection    ", mode_shares(prior_samples[accepted]))
    certificate = posterior.certify(samples)
    print()
    print(certificate)
    return certificate


if __name__ == "__main__":
    main()
