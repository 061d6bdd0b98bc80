"""Everything that changes during a training, and how it is saved as plain tensors."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.errors import InputError
from difftilt.models.heads import ZeroLinear
from difftilt.models.reads import Reads, reads_of
from difftilt.noise import seeded
from difftilt.objectives.base import Objective
from difftilt.objectives.ends import EndObjective
from difftilt.replay.behaviour import (
    Behaviour,
    DataBridges,
    LocalSearch,
    OnPolicy,
    Pooled,
    PriorPaths,
    Replay,
)
from difftilt.replay.buffer import ReplayBuffer
from difftilt.token_denoisers import TokenDenoiser
from difftilt.training.muon import Muon
from difftilt.training.partitions import LogPartition, partition_of
from difftilt.training.plan import Optimisation, Training
from difftilt.training.watch import Watch
from difftilt.values.functions import Value
from difftilt.values.kernel import ValueKernel
from difftilt.values.networks import value_for

READ = 4096
"""Conditions that are drawn to see how large their numbers are."""


class MovingAverage:
    """Exponential moving average of parameters, with the usual warm-up ``min(d, (1+k)/(10+k))``.

    Arguments:
        parameters: what is averaged.
        decay: in [0, 1); 0 keeps a plain copy.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the present parameters after update ``step`` (1, 2, ...)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        present = [p.detach() for p in self.parameters]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            self.average, present, 1 - decay
        )

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages in place."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


def hidden_matrices(module: nn.Module | None) -> list[nn.Parameter]:
    """Weights of linear layers of 32 or more inputs and outputs, but for layers called "last"."""
    if module is None:
        return []
    layers = [m for name, m in module.named_modules() if name.split(".")[-1] != "last"]
    linear = [m for m in layers if isinstance(m, nn.Linear) and not isinstance(m, ZeroLinear)]
    large = [p for m in linear for p in m.parameters() if p.ndim == 2 and min(p.shape) >= 32]
    return [p for p in large if p.requires_grad]


def head_parameters(module: nn.Module | None) -> list[nn.Parameter]:
    """Weights of the heads that were added to a copied network."""
    if module is None:
        return []
    heads = [m for m in module.modules() if isinstance(m, ZeroLinear)]
    return [p for head in heads for p in head.parameters()]


def optimisers(
    chain: Chain, log_z: LogPartition, plan: Optimisation, value: Value | None = None
) -> list[torch.optim.Optimizer]:
    """Adam for all, or Muon for hidden matrices; ``log Z`` and added heads have their own rates.

    Of a ``log Z`` that is a network, its number alone has that rate.
    """
    hidden, every = [], trainable(chain)
    if plan.hidden_learning_rate > 0:
        found = hidden_matrices(chain.kernel) + hidden_matrices(value)
        # A guided posterior's value is a part of its kernel.
        hidden = list({id(p): p for p in found}.values())
    if value is not None:
        every = every + [p for p in value.parameters() if not any(p is q for q in every)]
    every = every + [p for p in log_z.parameters() if p is not log_z.value]
    heads = [] if plan.head_learning_rate is None else head_parameters(chain.kernel)
    others = [p for p in every if not any(p is q for q in hidden + heads)]
    groups = [
        {"params": others, "lr": plan.learning_rate},
        {"params": [log_z.value], "lr": plan.log_z_learning_rate},
    ]
    if heads:
        groups.append({"params": heads, "lr": plan.head_learning_rate})
    made: list[torch.optim.Optimizer] = [torch.optim.Adam(groups, fused=True)]
    if hidden:
        made.append(Muon(hidden, lr=plan.hidden_learning_rate, weight_decay=0.0))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return made


@dataclass
class TrainingState:
    """A training between two updates.

    Arguments:
        chain: the posterior (its kernel and initial tilt are trained).
        log_reward: ``(x_0, condition) -> log r (B,)``.
        beta: the target's β.
        plan: the whole training.
        conditions: draws conditions, ``(count, generator) -> (count, ...)``, or None.
        labels: number of values of each label of integer conditions, for a learned ``log Z`` or
            ``log h``; 0 otherwise.
        data: data for bridges, or None.
        data_conditions: (n, ...) the condition of each row of the data, or None.
        value: learned ``log h`` of objectives that need one, to go on with; default ``value_of``.
        features: of ends x_0, (B, ...) to (B, d), whose pairwise distance is the logged diversity;
            default the ends themselves.

    Raises:
        InputError: the objective and the posterior do not go together, or what is learned of the
            conditions does not read them.
    """

    chain: Chain
    log_reward: Callable[[Tensor, Tensor | None], Tensor]
    beta: float
    plan: Training
    conditions: Callable[[int, torch.Generator], Tensor] | None = None
    labels: int | tuple[int, ...] = 0
    data: Tensor | None = None
    data_conditions: Tensor | None = None
    value: Value | None = None
    features: Callable[[Tensor], Tensor] | None = None
    step: int = 0
    elapsed: float = 0.0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.plan.seed)
        if self.conditions is None and self.data_conditions is not None:
            self.conditions = self._conditions_of_data
        self.log_z = self._partition()
        self.parameters = trainable(self.chain)
        self.average = MovingAverage(self.parameters, self.plan.optimisation.ema)
        objective = self.plan.objective
        _check_states(self.chain, objective)
        if self.chain.initial is not None and isinstance(objective, EndObjective):
            raise InputError(
                f"{type(objective).__name__} sees single steps and does not train the law of x_N; "
                "use initial=False"
            )
        if self.value is not None and isinstance(objective, EndObjective) and objective.guides:
            raise InputError(
                f"{type(objective).__name__} trains the value that guides the posterior, its "
                "form's own; give it none, or choose an objective that learns one beside it"
            )
        if self.value is None:
            with seeded(torch.Generator().manual_seed(self.plan.seed)):
                reads = self._reads() if "log_h" in objective.needs else None
                self.value = value_of(self.chain, objective, reads)
        if self.conditions is not None and self.value is not None and not self.value.conditional:
            raise InputError(
                "paths have conditions, and log h depends on them, but this value reads none; use "
                "form=ValueGuided(labels=...) or ValueGuided(numbers=...)"
            )
        self.optimisers = optimisers(self.chain, self.log_z, self.plan.optimisation, self.value)
        self.called = self.chain.calls.total
        replaying = self.plan.replaying
        self.buffer = ReplayBuffer(replaying.capacity, replaying.priority)
        self.behaviours = self._behaviours()
        self.watch = Watch(self.plan.alarm, self.plan.objective.consistent)

    @property
    def progress(self) -> float:
        """Share of the training that is done, by updates, network calls or the clock."""
        if self.watch.stops:
            return 1.0
        if self.plan.seconds is not None:
            return min(1.0, self.elapsed / self.plan.seconds)
        if self.plan.network_calls is not None:
            return min(1.0, self.network_calls / self.plan.network_calls)
        return min(1.0, self.step / self.plan.steps)

    @property
    def network_calls(self) -> int:
        """States that networks have seen in this training."""
        return self.chain.calls.total - self.called

    @property
    def warming(self) -> bool:
        """Whether the weighted-likelihood warm start is still on."""
        return self.progress < self.plan.warm_start

    @property
    def subset(self) -> int | None:
        """Random steps per path that get a gradient in this update; None for all."""
        return self.plan.warm_start_subset if self.warming else self.plan.subset

    @property
    def present_beta(self) -> float:
        """β of this update: linear from ``beta_start`` to the target's."""
        if self.plan.beta_start is None:
            return self.beta
        share = min(1.0, self.progress / max(self.plan.beta_annealed, 1e-9))
        return self.plan.beta_start + share * (self.beta - self.plan.beta_start)

    def learning_rate_scale(self) -> float:
        """Rising over the first updates, constant, then cosine to zero over the rest."""
        optimisation = self.plan.optimisation
        start = optimisation.decay_from
        scale = 1.0 if self.warming else optimisation.balance_scale
        scale *= min(1.0, (self.step + 1) / max(1, optimisation.warm_up))
        if self.progress <= start:
            return scale
        share = (self.progress - start) / max(1 - start, 1e-9)
        return scale * 0.5 * (1 + math.cos(math.pi * share))

    def use_average(self) -> None:
        """Put the moving average into the posterior, for sampling (call again to undo)."""
        if self.plan.optimisation.ema > 0:
            self.average.swap()

    def _partition(self) -> LogPartition:
        """The learned log Z; it reads conditions only where the objective asks for it."""
        objective = self.plan.objective
        wanted = bool({"log_z", "log_h"} & objective.needs)
        # Objectives of single steps ask for log h alone.
        if self.conditions is None or not wanted or isinstance(objective, EndObjective):
            return partition_of(self.chain)
        with seeded(torch.Generator().manual_seed(self.plan.seed)):
            return partition_of(self.chain, self._reads(), self._canvases)

    @property
    def _canvases(self) -> bool:
        """Whether conditions are canvases of a chain of tokens, which states themselves hold."""
        return isinstance(self.chain.denoiser, TokenDenoiser) and not self.labels

    def _reads(self) -> Reads | None:
        """How to read conditions like those that will be drawn; None for none, and for canvases."""
        if self.conditions is None or self._canvases:
            return None
        generator = torch.Generator().manual_seed(self.plan.seed)
        return reads_of(self.conditions(READ, generator), self.labels)

    def _conditions_of_data(self, count: int, generator: torch.Generator) -> Tensor:
        assert self.data_conditions is not None
        return self.data_conditions[
            torch.randint(len(self.data_conditions), (count,), generator=generator)
        ]

    def _behaviours(self) -> dict[str, tuple[Behaviour, float]]:
        plan, weights = self.plan, vars(self.plan.behaviour)
        keeping = plan.replaying
        pool = Pooled(
            keeping.pool_capacity,
            keeping.pool_fresh,
            keeping.pool_prior_share,
            keeping.pool_effective,
            keeping.pool_memory,
        )
        made: dict[str, Behaviour] = {
            "on_policy": OnPolicy(),
            "widened": OnPolicy(plan.widen),
            "prior": PriorPaths(),
            "pool": pool,
            "replay": Replay(),
            "local_search": LocalSearch(),
        }
        if self.data is not None:
            compared = plan.objective.door == "paths" and plan.objective.paths_per_group > 1
            if isinstance(plan.objective, EndObjective):
                # Sets of a given size follow the order of the rows.
                compared = plan.objective.contrast_size is not None
            # A warm start from data compares nothing.
            compared = compared and weights["data"] > 0
            together = plan.paths_per_condition if compared else 1
            made["data"] = DataBridges(self.data, self.data_conditions, together)
        first = plan.warm_start_from if plan.warm_start > 0 else None
        if first == "data" and self.data is None:
            raise InputError("warm_start_from='data' needs ends to start from: Sources(data=...)")
        if weights["data"] > 0 and self.data is None:
            raise InputError(
                f"the behaviour takes a share of {weights['data']:g} from data, and none is given; "
                "give Sources(data=...), or set BehaviourWeights(data=0)"
            )
        used = {name: (b, weights[name]) for name, b in made.items()}
        chosen = {k: v for k, v in used.items() if v[1] > 0 or k == first}
        if not chosen:
            raise InputError(
                "the training draws from given data alone, and there is none; give it, e.g. "
                "sources=Sources(data=...)"
            )
        return chosen


def _check_states(chain: Chain, objective: Objective) -> None:
    """Refuse an objective that needs another kind of states than the chain's.

    Raises:
        InputError: gradients or distances of tokens, or one-call likelihoods of vectors.
    """
    near = isinstance(objective, EndObjective) and objective.landings.kind == "near"
    if objective.door == "pathwise" or near:
        _ = chain.gaussian
    if isinstance(objective, EndObjective) and objective.leaps:
        _ = chain.leap


def value_of(chain: Chain, objective: Objective, reads: Reads | None = None) -> Value | None:
    """The value that an objective trains: the one that guides the posterior, or one of its own.

    Arguments:
        chain: the posterior.
        objective: what trains it.
        reads: what a value of its own reads of the conditions.

    Raises:
        InputError: the objective trains what guides, and the posterior is guided by no value.
    """
    if "log_h" not in objective.needs:
        return None
    if isinstance(chain.kernel, ValueKernel):
        return chain.kernel.value
    if isinstance(objective, EndObjective) and objective.guides:
        raise InputError(
            f"{type(objective).__name__} trains a value, and the posterior has to be guided by it; "
            "use form=ValueGuided() (or a ValueKernel)"
        )
    return value_for(chain, reads=reads)


def trainable(chain: Chain) -> list[nn.Parameter]:
    """The parameters of a posterior that are trained."""
    modules = [m for m in (chain.kernel, chain.initial) if m is not None]
    return [p for module in modules for p in module.parameters() if p.requires_grad]
