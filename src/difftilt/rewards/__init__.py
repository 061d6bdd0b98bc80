"""Rewards: what is wanted of a sample, in nats.

A reward is any Python callable

    log_reward(x_0) -> log r        or        log_reward(x_0, condition) -> log r

with ``x_0`` of shape (B, *event) and one number per sample, shape (B,); ``-inf`` where ``r = 0``.
The condition is a tensor (B, ...) or, for rewards of pictures, a list of B prompts.
The target is ``p(x) r(x)^beta``. A reward need not be differentiable, fast or importable here:
``loading`` finds one by its name and ``isolation`` runs one in another interpreter. ``contract`` is
how every reward enters the package: detached, (B,), float32 or wider, or one clear error.
"""
