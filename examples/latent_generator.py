"""A posterior under a generator that has no steps of its own: tilt its noise.

A GAN, a flow's ODE, a distilled model or a simulator is one function ``x = f(z)`` of standard
normal noise. There is no chain of densities to tilt, but ``z ~ N(0, I)`` has one, and it is exact
for every number of steps. ``difftilt.latent(f, shape)`` is that prior: the reward sees
``x = f(z)``, samples come back decoded, and everything else (training, certificate, correction) is
the same.

Here f draws a damped wave from four numbers, and nine noisy readings of one wave are given. The
posterior is over waves. Its truth comes from brute force: many prior draws, weighed by the reward.

    python examples/latent_generator.py
"""

import math

import torch
from torch import Tensor

import difftilt

TIMES = torch.linspace(0, 1, 25)
SEEN = torch.arange(0, 9) * 2  # the first two thirds; the rest is to be predicted
NOISE = 0.25


def generator(z: Tensor) -> Tensor:
    """Waves (B, 25) from noise (B, 4): amplitude, phase, damping, offset."""
    amplitude, phase, damping, offset = (z[:, i, None] for i in range(4))
    wave = torch.sin(4 * math.pi * TIMES + phase)
    return torch.exp(0.5 * amplitude - torch.exp(damping) * TIMES) * wave + 0.5 * offset


def main(steps: int = 300, samples: int = 4000) -> difftilt.Certificate:
    """Train for ``steps`` updates; print the prediction at the last time beside brute force."""
    torch.manual_seed(0)
    true_wave = generator(torch.tensor([[0.8, 0.6, -0.5, -0.4]]))[0]
    readings = true_wave[SEEN] + NOISE * torch.randn(len(SEEN))

    def log_likelihood(x: Tensor) -> Tensor:
        return -((x[:, SEEN] - readings) ** 2).sum(1) / (2 * NOISE**2)

    prior = difftilt.latent(generator, event_shape=(4,), steps=15)
    target = prior.tilt(log_likelihood, log_bound=0.0)
    posterior = target.fit(
        difftilt.RTB(residual_clip=4.0),
        steps=steps,
        optimisation=difftilt.Optimisation(hidden_learning_rate=0.01),
    )

    waves = generator(torch.randn(100 * samples, 4))
    weights = torch.softmax(log_likelihood(waves).double(), 0).float()
    mean = float(weights @ waves[:, -1])
    spread = math.sqrt(float(weights @ (waves[:, -1] - mean) ** 2))
    print(f"the wave at time 1; it truly was {float(true_wave[-1]):.3f}")
    for name, x in {
        "prior": prior.sample(samples, seed=1),
        "posterior": posterior.sample(samples),
        "corrected": posterior.sample(samples, correct="snis"),
    }.items():
        print(f"{name:<12} mean {float(x[:, -1].mean()):.3f}, sd {float(x[:, -1].std()):.3f}")
    print(f"brute force  mean {mean:.3f}, sd {spread:.3f} ({len(waves):,} prior draws)")
    certificate = posterior.certify(samples)
    print(certificate.verdict)
    return certificate


if __name__ == "__main__":
    main()
