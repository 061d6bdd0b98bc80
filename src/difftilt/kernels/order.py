"""A posterior of a masked chain that also chooses which position is revealed next.

With a uniform order that nobody may change, the balance can be reached only if the prior's
conditionals belong to one joint law. A posterior that draws the position as well reaches it for
every prior. From a state of k masks it draws position i with probability ``omega(i)``, where the
prior draws with 1 / k, so that a step adds ``log omega(i) + log k`` to the log-ratio.

The position is drawn before the networks predict (``planned``) and is a part of the state that is
kept, so scoring a path asks for one forward pass per step. A network reads the same ids before and
after the position is marked, so a rollout needs one pass per step too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain, Kernel
from difftilt.denoisers import Denoiser
from difftilt.diffusions.base import Diffusion
from difftilt.diffusions.masked import MaskedDiffusion
from difftilt.diffusions.orders import Stepwise
from difftilt.errors import InputError
from difftilt.kernels.networks import DenoiserKernel
from difftilt.kernels.token_heads import example_features
from difftilt.models.heads import ZeroLinear
from difftilt.noise import Noise
from difftilt.token_denoisers import TokenDenoiser, anything, wide
from difftilt.transitions.categorical import CategoricalTilt, drawn_tokens


class OrderKernel(Kernel):
    """The step of another denoiser of tokens, at positions that a head on its features draws.

    Arguments:
        denoiser: the posterior's denoiser (trainable), a ``TokenDenoiser`` or one with adapters.
        diffusion: shared with the prior; its order is ``Stepwise()``.
        width: d, columns of the denoiser's features.

    Raises:
        InputError: another diffusion or order.
    """

    def __init__(self, denoiser: Denoiser, diffusion: Diffusion, width: int) -> None:
        super().__init__()
        if not isinstance(diffusion, MaskedDiffusion) or type(diffusion.order) is not Stepwise:
            raise InputError(
                "a learned order needs a masked chain whose positions are drawn step by step; "
                "give its MaskedDiffusion the order Stepwise()"
            )
        self.denoiser = denoiser
        self.diffusion = diffusion
        # A bias would be the same for all positions.
        self.head = ZeroLinear(width, bias=False)
        self._seen: tuple[Tensor, Tensor] | None = None

    def planned(
        self,
        x: Int[Tensor, "B L"],
        n: int,
        condition: Tensor | None,
        diffusion: Diffusion,
        noise: Noise,
    ) -> Int[Tensor, "B L"]:
        rows = self.diffusion.due(x, n).nonzero().flatten()
        hidden = self._features(x, n, condition, rows)
        logits = wide(hidden.new_zeros(x.shape))
        logits = logits.index_copy(0, rows, self._logits(hidden, x[rows]))
        position = drawn_tokens(logits.log_softmax(1)[:, None], noise)[:, 0]
        marked = self.diffusion.placed(x, position, n)
        self._seen = marked, hidden
        return marked

    def forward(
        self,
        x: Int[Tensor, "B L"],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> CategoricalTilt:
        reveal = self.diffusion.reveal(n, x)
        rows = reveal.valid.any(1).nonzero().flatten()
        hidden = self._remembered(x)
        if hidden is None:
            hidden = self._features(x, n, condition, rows)
        part = reveal.part(rows)
        order = wide(hidden.new_zeros(len(x)))
        log_probs = anything(reveal, self.diffusion.vocab_size, order.dtype)
        if len(rows):
            with self._asked(condition, rows) as inner:
                log_probs = log_probs.index_copy(0, rows, inner.revealed(hidden, part))
            gain = _order_gain(self._logits(hidden, x[rows]), part.positions[:, 0])
            order = order.index_copy(0, rows, gain)
        return CategoricalTilt(reveal, log_probs, prediction, order)

    def log_next(
        self, x: Int[Tensor, "B L"], n: int | Int[Tensor, " B"], condition: Tensor | None
    ) -> Float[Tensor, "B L"]:
        """``log omega`` of every position that is not revealed yet, -inf elsewhere."""
        every = torch.arange(len(x), device=x.device)
        return self._logits(self._features(x, n, condition, every), x).log_softmax(1)

    def _remembered(self, x: Tensor) -> Tensor | None:
        """The features that the planning of this very tensor has worked out, once."""
        seen, self._seen = self._seen, None
        if seen is None or seen[0] is not x:
            return None
        with_graph = seen[1].requires_grad or not torch.is_grad_enabled()
        return seen[1] if with_graph else None

    def _features(
        self, x: Tensor, n: int | Tensor, condition: Tensor | None, rows: Int[Tensor, " R"]
    ) -> Float[Tensor, "R L d"]:
        if not len(rows):
            return self.head.weight.new_zeros((0, x.shape[1], self.head.in_features))
        with self._asked(condition, rows) as inner:
            return inner.features(x[rows], self.diffusion.level(n, x, condition).part(rows))

    @contextmanager
    def _asked(self, condition: Tensor | None, rows: Int[Tensor, " R"]) -> Iterator[TokenDenoiser]:
        """The posterior's denoiser of some samples, to be asked part by part."""
        bound = self.denoiser.given(None if condition is None else condition[rows])
        with bound.active() as inner:
            assert isinstance(inner, TokenDenoiser)
            yield inner

    def _logits(self, hidden: Float[Tensor, "R L d"], x: Int[Tensor, "R L"]) -> Tensor:
        """Logits of the positions that are not revealed yet, -inf elsewhere, float32 or wider."""
        logits = wide(self.head(hidden.to(self.head.weight.dtype))[..., 0])
        return logits.masked_fill(x <= self.diffusion.vocab_size, -torch.inf)


def _order_gain(logits: Float[Tensor, "R L"], chosen: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    """``log omega(chosen) + log k`` over the k finite logits; exactly 0 where all are 0."""
    count = torch.isfinite(logits).sum(1).to(logits.dtype)
    taken = logits.gather(1, chosen[:, None])[:, 0]
    return taken - (torch.logsumexp(logits, 1) - count.log())


def ordered(kernel: DenoiserKernel, chain: Chain) -> OrderKernel:
    """A posterior of the same denoiser that also chooses the positions, uniform at the start.

    Arguments:
        kernel: of a copy, or of adapters.
        chain: the prior.

    Raises:
        InputError: the chain's order is not ``Stepwise()``.
    """
    hidden = example_features(chain, "a learned order")
    made = OrderKernel(kernel.denoiser, chain.diffusion, hidden.shape[-1])
    made.head.to(hidden.device, hidden.dtype)
    return made
