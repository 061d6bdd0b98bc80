"""Atoms in space as a chain: molecules that are diffused without their centre of mass.

A state is (B, atoms, 3 + F): places and features. What a molecule is does not depend on where it
is, so its law lives on the subspace of places whose mean is 0, of ``3 (n - 1)`` dimensions, and
only the first n atoms exist. Here the chain still runs on the whole space, and the other directions
(the mean, and atoms that are not there) are *inert*: the denoiser does not read them and says 0 of
them, whatever it is asked.

    p(x_{n-1} | x_n) = N(P x_{n-1}; μ(P x_n), std²)  ·  N((1 - P) x_{n-1}; g (1 - P) x_n, std²)

P takes the mean off and drops absent atoms. The first factor is the law on the subspace, EDM's; the
second is the same for prior and posterior and cancels, to the bit, as ``δ = 0`` there. So the
log-ratio is that of the subspace, noise needs no projection, and every kernel, objective and
correction works as it is. The last step lands on the clean prediction: ``x_0`` is centred, and
absent atoms are zeros.

The condition is the number of atoms, (B,), or (B, 1 + C): the number, then what a network is told.

Source: Hoogeboom et al. 2022, section 3 and appendix A (arXiv 2203.17003).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from difftilt.adapters.folders import read_weights
from difftilt.chains.chain import Chain
from difftilt.denoisers import Denoiser, Level, to_clean
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import CheckpointError, InputError
from difftilt.models.egnn import PLACE, AtomNetwork, AtomNetworkSize, centred, present_atoms
from difftilt.models.numbers import Numbers
from difftilt.schedules import NoiseLevels
from difftilt.transitions.gaussian import LOG_2_PI, Gaussian

PREFIX = "dynamics.egnn."


def projected(x: Float[Tensor, "B A F"], present: Bool[Tensor, "B A"]) -> Float[Tensor, "B A F"]:
    """``P x``: places less their mean over the atoms that are present, zeros at the others."""
    here = present[..., None].to(x.dtype)
    return torch.cat([centred(x[..., :PLACE], present), x[..., PLACE:] * here], -1)


def subspace_log_prob(
    law: Gaussian, x: Float[Tensor, "B A F"], present: Bool[Tensor, "B A"]
) -> Float[Tensor, " B"]:
    """Log-density of ``P x`` under a law of one step, on ``3 (n - 1) + n F`` dimensions, nats."""
    count = present.sum(1)
    dimensions = PLACE * (count - 1) + count * (x.shape[-1] - PLACE)
    square = projected(law.standardise(x), present).square().sum((1, 2))
    log_std = torch.as_tensor(law.std, dtype=x.dtype).log().reshape(-1)
    return -0.5 * square - dimensions * (log_std + 0.5 * LOG_2_PI)


class AtomDenoiser(Denoiser):
    """An equivariant network as a denoiser of centred molecules.

    Arguments:
        network: called as ``network(P x, time, present, context)``.
        prediction_type: what its output means, as in ``difftilt.denoisers``.
        condition: number of atoms of each molecule (B,), or (B, 1 + C); None: as many as there is
            room for.
        reads: the condition's last numbers, which a posterior reads (``informed``) and the prior
            does not; None for none.
    """

    def __init__(
        self,
        network: AtomNetwork,
        prediction_type: str = "v_prediction",
        condition: Tensor | None = None,
        reads: Numbers | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.prediction_type = prediction_type
        self.condition = condition
        self.reads = reads

    def given(self, condition: Tensor | None) -> "AtomDenoiser":
        """This denoiser with numbers of atoms bound."""
        other = copy.copy(self)
        other.condition = condition
        return other

    def informed(self) -> "AtomDenoiser":
        if self.reads is None or self.network.further is not None:
            return self
        network = self.network.reading(self.reads.count)
        return AtomDenoiser(network, self.prediction_type, self.condition, self.reads)

    def forward(self, x_t: Float[Tensor, "B A F"], level: Level) -> Float[Tensor, "B A F"]:
        """The clean prediction, centred, with zeros where no atom is.

        Raises:
            InputError: the condition is not of this batch, or says too little or too much.
        """
        present, context = self._told(x_t)
        inside = projected(x_t, present)
        output = self.network(inside, level.times(x_t, x_t.dtype), present, context)
        return projected(to_clean(self.prediction_type, output, inside, level), present)

    def _told(self, x: Tensor) -> tuple[Bool[Tensor, "B A"], Tensor | None]:
        """Which atoms there are, and what else the network reads."""
        given, wanted = self.condition, self.network.context
        beyond = 0 if self.reads is None or self.network.further is not None else self.reads.count
        if given is None and not wanted:
            return x.new_ones(x.shape[:2], dtype=torch.bool), None
        if given is None or len(given) != len(x) or (given.ndim < 2 and wanted):
            got = None if given is None else tuple(given.shape)
            raise InputError(
                f"molecules need a condition of {len(x)} rows, each a number of atoms and "
                f"{wanted} numbers that the network reads; got shape {got}"
            )
        rows = given.reshape(len(x), -1)
        if wanted and rows.shape[1] - beyond != 1 + wanted:
            raise InputError(
                f"this network reads {wanted} numbers beside the number of atoms, and the "
                f"condition has {rows.shape[1] - 1}; give a row (atoms, numbers...) a molecule"
            )
        counts = rows[:, 0].round()
        if not bool(((counts >= 1) & (counts <= x.shape[1])).all()):
            raise InputError(
                f"the condition's numbers of atoms must lie between 1 and the chain's {x.shape[1]}"
            )
        return present_atoms(counts, x.shape[1]), self._context(rows, x) if wanted else None

    def _context(self, rows: Float[Tensor, "B numbers"], x: Tensor) -> Float[Tensor, "B C"]:
        """What the network is told of each molecule."""
        if self.network.further is None or self.reads is None:
            return rows[:, 1 : 1 + self.network.context]
        own, more = rows[:, 1:].split(
            [self.network.context - self.reads.count, self.reads.count], 1
        )
        return torch.cat([own.to(x), self.reads.code(more, x)], 1)


def molecule_chain(denoiser: AtomDenoiser, levels: NoiseLevels, atoms: int) -> Chain:
    """The chain of a denoiser of molecules of at most ``atoms`` atoms; its last step is a map."""
    like = next(denoiser.parameters()).detach().new_zeros(())
    event = atoms, PLACE + denoiser.network.features
    return Chain(denoiser, GaussianDiffusion(levels, base_std=1.0), event, like=like)


@dataclass(frozen=True)
class MoleculeModel:
    """A foreign model of molecules.

    Arguments:
        denoiser: of its normalised states.
        levels: all of its noise levels; level 0 is data.
        scales: what places, one-hots and charges of a state are multiplied by.
        charges: whether the last feature is the atomic number.
    """

    denoiser: AtomDenoiser
    levels: NoiseLevels
    scales: tuple[float, float, float]
    charges: bool

    def chain(self, steps: int, atoms: int) -> Chain:
        """The prior of molecules of at most ``atoms`` atoms, on ``steps`` of the levels.

        Raises:
            InputError: fewer than 2 steps, or more than the model has.
        """
        most = self.levels.steps
        if not 2 <= steps <= most:
            raise InputError(f"steps={steps} must lie between 2 and the model's {most}")
        inner = torch.linspace(1, most, steps, dtype=torch.float64).round().long()
        chosen = torch.cat([torch.zeros(1, dtype=torch.long), inner])
        parts = (v[chosen] for v in (self.levels.time, self.levels.alpha, self.levels.sigma))
        return molecule_chain(self.denoiser, NoiseLevels(*parts), atoms)

    def decode(self, x: Float[Tensor, "B A F"]) -> Float[Tensor, "B A F"]:
        """States in Å, with one-hots and atomic numbers as they are in data."""
        kinds = x.shape[-1] - PLACE - self.charges
        sizes = [self.scales[0]] * PLACE + [self.scales[1]] * kinds
        return x * x.new_tensor(sizes + [self.scales[2]] * self.charges)


@dataclass(frozen=True)
class Published:
    """Settings of an EDM that its state dict does not say, under its own names in brackets.

    Arguments:
        scales: of places, one-hots and charges (``normalize_factors``).
        charges: whether the last feature is the atomic number (``include_charges``).
        bounded: whether moves are bounded (``tanh``).
        softening: added to distances that divide (``norm_constant``).
        normaliser: what sums over neighbours are divided by (``normalization_factor``).
    """

    scales: tuple[float, float, float] = (1.0, 4.0, 10.0)
    charges: bool = True
    bounded: bool = True
    softening: float = 1.0
    normaliser: float = 1.0


QM9 = Published()


def load_edm(
    source: str | Path | Mapping[str, Tensor],
    context: int = 0,
    published: Published = QM9,
) -> MoleculeModel:
    """A published E(3)-equivariant diffusion model (EDM), from its state dict.

    What the state dict does not say has QM9's published values as defaults. The final draw of EDM,
    of std sigma_0 / alpha_0 (0.003 Å there), is here the map to its mean.

    Arguments:
        source: a state dict, or a file of one (safetensors, or torch's, read as weights only).
        context: numbers that the network is told of each molecule.
        published: what the state dict does not say.

    Raises:
        InputError: the file cannot be read.
        CheckpointError: it is no EDM of a predefined noise schedule.

    Source: Hoogeboom et al. 2022 (arXiv 2203.17003), appendix B and C.
    """
    state = source if isinstance(source, Mapping) else read_weights(Path(source))
    weights = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    gamma = state.get("gamma.gamma")
    if gamma is None or "embedding.weight" not in weights:
        raise CheckpointError(
            "the state dict is no EDM with a predefined noise schedule (it lacks gamma.gamma or "
            f"{PREFIX}embedding.weight); models with a learned schedule are not read"
        )
    width, inputs = weights["embedding.weight"].shape
    size = AtomNetworkSize(
        width,
        _count(weights, "e_block_{}.gcl_equiv.coord_mlp.0.weight"),
        _count(weights, "e_block_0.gcl_{}.edge_mlp.0.weight"),
        "e_block_0.gcl_0.att_mlp.0.weight" in weights,
        15.0 if published.bounded else None,
        published.softening,
        published.normaliser,
    )
    network = AtomNetwork(inputs - 1 - context, context, size)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the state dict does not fit an EDM ({error})") from error
    denoiser = AtomDenoiser(network.eval().requires_grad_(False), "epsilon")
    return MoleculeModel(denoiser, levels_of_gamma(gamma), published.scales, published.charges)


def levels_of_gamma(gamma: Float[Tensor, " T"]) -> NoiseLevels:
    """The levels of a table ``gamma_t = -log SNR``, t = 0 ... T - 1, and below them data."""
    gamma = gamma.detach().double()
    share = torch.linspace(0, 1, len(gamma), dtype=torch.float64)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    alpha = torch.cat([one, torch.sigmoid(-gamma).sqrt()])
    sigma = torch.cat([zero, torch.sigmoid(gamma).sqrt()])
    return NoiseLevels(torch.cat([zero, share]), alpha, sigma)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    count = 0
    while pattern.format(count) in weights:
        count += 1
    return count
