"""A guided posterior of offline control that serves every β up to a largest one, at one of them."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from difftilt.diagnostics.evidence import effective_sample_size
from difftilt.posteriors import Posterior
from difftilt.values.kernel import ValueKernel


def at_beta(posterior: Posterior, beta: float) -> Posterior:
    """A posterior that is guided by a value of every β, with its target, at one β.

    Arguments:
        posterior: its kernel is a ``ValueKernel``.
        beta: in (0, largest_beta].

    Raises:
        InputError: β beyond what the value was trained on.
    """
    kernel = posterior.chain.kernel
    assert isinstance(kernel, ValueKernel)
    target = replace(posterior.target, beta=beta)
    return replace(posterior, target=target, chain=posterior.chain.tilted(kernel.at(beta)))


def mean_ess_in(posterior: Posterior, states: Float[Tensor, "B O"], paths: int = 128) -> float:
    """Mean effective sample size, a share, of paths in each of some states."""
    found = []
    for state in states:
        drawn = posterior.given(state[None]).draw(paths, seed=1)
        assert drawn.log_w is not None
        found.append(effective_sample_size(drawn.log_w))
    return sum(found) / len(found)
