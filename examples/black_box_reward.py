"""A reward that is any Python function, here in a process of its own, and that may say "never".

A reward takes samples and returns ``log r`` in nats, one number per sample. It needs no gradient.
``-inf`` is allowed: r = 0, a sample that must not be. It has to be finite somewhere that the prior
reaches, or there is no posterior.

``isolated("file.py:function")`` runs it in another process: a crash costs that process and not the
training, and with ``python="/path/to/another/bin/python"`` it has its own packages. This file
is such a file: at its top it imports numpy alone, which is all the other process needs.

Relative trajectory balance pushes its posterior off forbidden ground; what is left there the
correction takes away, for such a sample has weight zero.

Here the prior is a standard normal in the plane and the reward asks for a place on a half ring,
and the nearer to the right the better.

    python examples/black_box_reward.py
"""

import numpy as np

INNER, OUTER = 1.0, 2.0


def log_reward(x_0):
    """Nats; ``-inf`` off the half ring ``1 <= |x| <= 2, x[1] >= 0``, else ``2 (x[0] - 2) <= 0``."""
    x = np.asarray(x_0, dtype=np.float64)
    radius = np.hypot(x[:, 0], x[:, 1])
    allowed = (radius >= INNER) & (radius <= OUTER) & (x[:, 1] >= 0)
    return np.where(allowed, 2 * (x[:, 0] - OUTER), -np.inf)


def main(steps: int = 300, samples: int = 2000):
    """Train for ``steps`` updates and print how much of the mass is where it may be."""
    import torch

    import difftilt

    torch.manual_seed(0)
    schedule = difftilt.VariancePreserving()

    class StandardNormal(torch.nn.Module):
        """``E[x_0 | x_t] = alpha x_t`` for data from N(0, I)."""

        def forward(self, x, time):
            return schedule.alpha_sigma(time)[0][:, None] * x

    prior = difftilt.load(
        StandardNormal(), steps=15, schedule=schedule, event_shape=(2,), prediction_type="sample"
    )
    with difftilt.isolated(f"{__file__}:log_reward") as reward:
        target = prior.tilt(reward, log_bound=0.0)
        posterior = target.fit(
            difftilt.RTB(residual_clip=4.0),
            steps=steps,
            optimisation=difftilt.Optimisation(hidden_learning_rate=0.01),
        )
        plain = posterior.sample(samples)
        exact = posterior.sample(samples, correct="snis")
        certificate = posterior.certify(2 * samples)

    drawn = prior.sample(10 * samples, seed=1).numpy()
    truth = drawn[np.log(np.random.default_rng(0).random(len(drawn))) < log_reward(drawn)]
    print("                       allowed   mean of x[0]")
    rows = {"prior": drawn, "posterior": plain, "corrected": exact, "truth, by rejection": truth}
    for name, x in rows.items():
        x = np.asarray(x)
        print(f"{name:<22} {np.isfinite(log_reward(x)).mean():>7.3f} {x[:, 0].mean():>14.3f}")
    print(certificate.verdict)
    return certificate


if __name__ == "__main__":
    main()
