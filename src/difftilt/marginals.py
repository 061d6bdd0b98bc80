"""Exact probabilities of completions, summed over every order in which they may be revealed.

A chain that reveals one position per step passes through partial states: some positions revealed,
the others masked. Along the lattice of those states probability flows as

    P(S ∪ {x_i = v}) += P(S) ω(i | S) π_i(v | S),        P(all masked) = 1,

ω the law of the next position and π the network's. One completion of n positions needs the 2^n
states that agree with it, whatever the vocabulary (``marginal_log_prob``); a small vocabulary can
be summed over as a whole, (V + 1)^n states (``completion_law``). No sampling is involved: what is
left is rounding, in float64 from the networks' float32.

If a posterior is exact, ``log q(x_0) - log p(x_0) - β log r(x_0)`` is the same number -log Z for
every completion of a canvas: its spread (``terminal_residual``) measures a sampler of real text.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.denoisers import Denoiser
from difftilt.diffusions.masked import GENERATED, MaskedDiffusion
from difftilt.errors import InputError
from difftilt.kernels.networks import DenoiserKernel
from difftilt.kernels.order import OrderKernel
from difftilt.transitions.categorical import Reveal

MOST_STATES = 2_000_000


@torch.no_grad()
def marginal_log_prob(
    chain: Chain,
    x_0: Int[Tensor, "B L"],
    condition: Int[Tensor, "B 2 L"] | None = None,
    chunk: int = 256,
) -> Float[Tensor, " B"]:
    """``log p(x_0)`` of given completions under a prior or a posterior, summed over all orders.

    Arguments:
        chain: its order reveals one position per step.
        x_0: completions.
        condition: their canvases; None: every position is generated.
        chunk: partial states per network call; 2^n of each completion are asked about.

    Returns:
        nats, float64.

    Raises:
        InputError: the order reveals several positions at once, or 2^n is beyond 2,000,000.

    Exact when the network is a function of the state, as in eval mode.
    """
    generated = _generated(x_0, condition)
    counts, found = generated.sum(1), torch.zeros(len(x_0), dtype=torch.float64)
    for n in counts.unique().tolist():
        rows = (counts == n).nonzero()[:, 0]
        bound = None if condition is None else condition[rows]
        lattice = _Lattice(chain, x_0[rows], bound, x_0[rows].unsqueeze(2), chunk)
        found[rows.cpu()] = lattice.log_law()[:, 0]
    return found


@torch.no_grad()
def completion_law(
    chain: Chain, condition: Int[Tensor, "C 2 L"], chunk: int = 16_384
) -> Float[Tensor, "C completions"]:
    """The probability of every completion of canvases, in the order of ``completions``.

    Arguments:
        chain: its order reveals one position per step; tokens 0 ... V - 1.
        condition: canvases with equally many generated positions n.
        chunk: states per network call, of (V + 1)^n for each canvas.

    Raises:
        InputError: as ``marginal_log_prob``, or canvases of different n.
    """
    x_0 = condition[:, 0]
    vocabulary = torch.arange(_masked(chain).vocab_size, device=x_0.device)
    candidates = vocabulary.expand(*x_0.shape, -1)
    return _Lattice(chain, x_0, condition, candidates, chunk).log_law().exp()


def completions(vocab_size: int, condition: Int[Tensor, "C 2 L"]) -> Int[Tensor, "C completions L"]:
    """Every completion of canvases, the last generated position running fastest."""
    positions = _positions(condition[:, 1] == GENERATED)
    tokens = words(vocab_size, positions.shape[1])
    x_0 = condition[:, :1].expand(-1, len(tokens), -1)
    place = positions[:, None].expand(-1, len(tokens), -1)
    return x_0.scatter(2, place, tokens.expand(len(condition), -1, -1).to(x_0))


def words(base: int, n: int) -> Int[Tensor, "all n"]:
    """All words of n digits 0 ... base - 1, the last running fastest.

    Raises:
        InputError: more than 2,000,000 words.
    """
    if base**n > MOST_STATES:
        raise InputError(
            f"{n} positions have {base}^{n} partial states, more than {MOST_STATES:,}; ask about "
            "shorter canvases, or estimate by sampling"
        )
    place = base ** torch.arange(n - 1, -1, -1)
    return torch.arange(base**n)[:, None] // place % base


def terminal_residual(
    posterior: Chain,
    prior: Chain,
    x_0: Int[Tensor, "B L"],
    log_r: Float[Tensor, " B"],
    beta: float = 1.0,
    condition: Int[Tensor, "B 2 L"] | None = None,
) -> Float[Tensor, " B"]:
    """``log q(x_0) - log p(x_0) - β log r(x_0)``: -log Z of the canvas for an exact posterior.

    Arguments:
        posterior: the chain under judgement.
        prior: what it is a posterior of.
        x_0: completions, of any origin.
        log_r: their log-rewards.
        beta: of the target.
        condition: their canvases; None: every position is generated.

    Returns:
        nats, float64; compare within a canvas.

    Raises:
        InputError: as ``marginal_log_prob``.
    """
    if posterior.kernel is None:
        return -beta * log_r.double().cpu()
    own = marginal_log_prob(posterior, x_0, condition)
    return own - marginal_log_prob(prior, x_0, condition) - beta * log_r.double().cpu()


@dataclass(frozen=True)
class _Lattice:
    """The partial states of C canvases whose generated positions take A candidate tokens each.

    Arguments:
        chain: prior or posterior.
        x_0: (C, L) tokens of the positions that are not generated.
        condition: canvases (C, 2, L), or None.
        candidates: (C, L, A).
        chunk: states per network call.
    """

    chain: Chain
    x_0: Int[Tensor, "C L"]
    condition: Int[Tensor, "C 2 L"] | None
    candidates: Int[Tensor, "C L A"]
    chunk: int

    def log_law(self) -> Float[Tensor, "C completions"]:
        """Log-probability of every choice of candidates, level by level."""
        generated = _generated(self.x_0, self.condition)
        places, masked = _positions(generated), self.candidates.shape[2]
        digits = words(masked + 1, places.shape[1])
        log_p = torch.full((len(places), len(digits)), -math.inf, dtype=torch.float64)
        log_p[:, -1] = 0.0  # the last state is the one that is masked everywhere
        left = (digits == masked).sum(1)
        for count in range(places.shape[1], 0, -1):
            states = (left == count).nonzero()[:, 0]
            flow = self._flow(places, generated, digits[states])
            _push(log_p, flow + log_p[:, states, None, None], digits, states)
        return log_p[:, left == 0]

    def _flow(
        self, places: Int[Tensor, "C n"], generated: Bool[Tensor, "C L"], digits: Int[Tensor, "S n"]
    ) -> Float[Tensor, "C S n A"]:
        """``log ω(i | S) + log π_i(v | S)`` of every candidate v; -inf at revealed positions."""
        count, states = len(places), len(digits)
        x = self._states(places, digits).flatten(0, 1)
        canvas = torch.arange(count, device=x.device).repeat_interleave(states)
        parts = [
            self._asked(x[rows], canvas[rows], places, generated)
            for rows in _chunks(len(x), self.chunk)
        ]
        return torch.cat(parts).unflatten(0, (count, states))

    def _states(
        self, places: Int[Tensor, "C n"], digits: Int[Tensor, "S n"]
    ) -> Int[Tensor, "C S L"]:
        """The states that digits stand for, as the chain writes them."""
        diffusion = _masked(self.chain)
        hidden = torch.full_like(self.candidates[..., :1], diffusion.undecided)
        codes = torch.cat([self.candidates, hidden], 2)
        codes = codes.gather(1, places[..., None].expand(-1, -1, codes.shape[2]))
        chosen = digits.to(codes.device).T.expand(len(places), -1, -1)
        tokens = codes.gather(2, chosen).transpose(1, 2)
        like = self.chain.empty(len(self.x_0)).long()
        start = diffusion.base(like, self.condition).canvas
        return (
            start[:, None]
            .expand(-1, len(digits), -1)
            .scatter(2, places[:, None].expand(-1, len(digits), -1), tokens)
        )

    def _asked(
        self,
        x: Int[Tensor, "R L"],
        canvas: Int[Tensor, " R"],
        places: Int[Tensor, "C n"],
        generated: Bool[Tensor, "C L"],
    ) -> Float[Tensor, "R n A"]:
        """What the networks say about some states, each of one of the canvases."""
        diffusion = _masked(self.chain)
        masked = x == diffusion.undecided
        count, place = masked.sum(1), _positions(masked)
        reveal = Reveal(place, torch.ones_like(place, dtype=torch.bool))
        condition = None if self.condition is None else self.condition[canvas]
        level = diffusion.level_of(reveal, count, condition)
        log_probs = step_denoiser(self.chain).given(condition)(x, level)
        if isinstance(self.chain.kernel, OrderKernel):
            log_next = self.chain.kernel.log_next(x, count, condition)
        else:
            log_next = diffusion.order.log_next(masked, generated[canvas], x, level)
        wanted = self.candidates[canvas[:, None], place]
        found = log_probs.gather(2, wanted).double() + log_next.gather(1, place)[..., None]
        # Back from the masked positions to all n, in their order.
        full = found.new_full((*x.shape, found.shape[2]), -math.inf)
        full.scatter_(1, place[..., None].expand(found.shape), found)
        return full.gather(1, places[canvas][..., None].expand(-1, -1, found.shape[2])).cpu()


def _push(
    log_p: Float[Tensor, "C all"],
    flow: Float[Tensor, "C S n A"],
    digits: Int[Tensor, "all n"],
    states: Int[Tensor, " S"],
) -> None:
    """Add what flows out of some states to their successors, in place."""
    n, masked = digits.shape[1], flow.shape[3]
    for i in range(n):
        opened = digits[states, i] == masked
        for v in range(masked):
            # Different states have different successors by the same choice.
            after = states[opened] - (masked - v) * (masked + 1) ** (n - 1 - i)
            log_p[:, after] = torch.logaddexp(log_p[:, after], flow[:, opened, i, v])


def _generated(x_0: Int[Tensor, "B L"], condition: Tensor | None) -> Bool[Tensor, "B L"]:
    if condition is None:
        return torch.ones_like(x_0, dtype=torch.bool)
    return condition[:, 1] == GENERATED


def _positions(chosen: Bool[Tensor, "B L"]) -> Int[Tensor, "B n"]:
    """The places of the chosen positions, from left to right, equally many in each row."""
    counts = chosen.sum(1)
    if not bool((counts == counts[0]).all()):
        raise InputError(
            f"canvases generate between {int(counts.min())} and {int(counts.max())} positions; "
            "group those of equally many"
        )
    return chosen.nonzero()[:, 1].reshape(len(chosen), int(counts[0]))


def _masked(chain: Chain) -> MaskedDiffusion:
    diffusion = chain.diffusion
    if not isinstance(diffusion, MaskedDiffusion):
        raise InputError("marginals are of masked chains of tokens; this chain is of another kind")
    if diffusion.order.at_once(diffusion.length) > 1:
        raise InputError(
            f"{diffusion.order} reveals several positions in a step, so that its steps do not go "
            "through all partial states; marginals need an order of one position per step"
        )
    return diffusion


def step_denoiser(chain: Chain) -> Denoiser:
    """What says the law of any masked position: the prior's network or the posterior's.

    Raises:
        InputError: a posterior that is no denoiser.
    """
    if chain.kernel is None:
        return chain.denoiser
    if isinstance(chain.kernel, DenoiserKernel | OrderKernel):
        return chain.kernel.denoiser
    raise InputError(
        f"marginals cannot ask {type(chain.kernel).__name__} about all masked positions of a "
        "state; they need a posterior that is a denoiser (FullCopy or LoRA)"
    )


def _chunks(total: int, chunk: int) -> Iterator[slice]:
    for start in range(0, total, max(1, chunk)):
        yield slice(start, min(start + chunk, total))
