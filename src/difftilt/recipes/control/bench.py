"""The control table: every method on one prior and critic per data set and seed."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.diagnostics.evidence import effective_sample_size
from difftilt.errors import InputError
from difftilt.posteriors import Posterior
from difftilt.recipes.base import tell
from difftilt.recipes.control.methods import TrainedMethod, control_methods, control_plan, player
from difftilt.recipes.control.parts import ControlSetting, Parts, build_setting
from difftilt.recipes.control.recipe import EVALUATION_SEED, check_named, first_reset, playable_data
from difftilt.recipes.tables.cells import Cell, Cells, cells_of
from difftilt.recipes.tables.cost import Cost
from difftilt.recipes.tables.processes import in_own_process
from difftilt.tasks.control.evaluation import Policy, evaluate

CERTIFIED_STATES = 16
CERTIFIED_PATHS = 128
TIMED_CALLS = 20


@dataclass(frozen=True)
class ControlBench:
    """What the control table runs.

    Arguments:
        data: data sets by name (or folder).
        methods: by name.
        seeds: of prior, critic and trainings; each plays episodes of its own.
        updates: of each training.
        episodes: of each evaluation.
        parts: how priors and critics are made.

    Raises:
        InputError: an unknown method, or a number out of range.
    """

    data: list[str]
    methods: list[str]
    seeds: list[int]
    updates: int
    episodes: int
    parts: Parts

    def __post_init__(self) -> None:
        check_named(self.methods, control_methods())
        for name in ("updates", "episodes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")

    def cells(self) -> Cells:
        """One per data set, seed and method."""
        names = cells_of(problem=self.data, seed=self.seeds, method=self.methods)
        parts = json.loads(json.dumps(asdict(self.parts)))
        played = {"episodes": self.episodes, "first_reset": EVALUATION_SEED}
        settings = {"updates": self.updates, **played, "parts": parts}
        return Cells(names, settings, self._rows_of)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per data set, seed and method."""
        return self.cells().rows()

    def _rows_of(self, cell: Cell) -> list[dict[str, Any]]:
        """A row made in a process of its own, so that none inherits another's memory.

        The first one of a data set and seed also fits prior and critic, which the others find in
        the cache.
        """
        asked = (self, cell["problem"], cell["method"], cell["seed"])
        return [in_own_process(control_row, *asked)]


def control_row(bench: ControlBench, data: str, method: str, seed: int) -> dict[str, Any]:
    """Train one method and play it."""
    setting = build_setting(playable_data(data), replace(bench.parts, seed=seed), tell)
    plan = control_plan(bench.updates, seed)
    chosen = control_methods()[method]
    chain = None
    with Cost() as cost:
        if isinstance(chosen, TrainedMethod):
            chain = chosen.chain(setting, plan)
            policy: Policy = player(setting, chain)
        else:
            policy = chosen.make(setting, plan)
    reset = first_reset(seed, bench.episodes)
    played = evaluate(setting.data.environment, policy, bench.episodes, reset)
    states = setting.held_out_states(1)
    return {
        "problem": data,
        "method": method,
        "seed": seed,
        "score": _score(played),
        "return": played.mean,
        "return_error": played.standard_error,
        "ess": None if chain is None else mean_ess(setting, chain),
        "beta": setting.target.beta,
        "seconds": cost.seconds,
        "action_ms": 1e3 * seconds_per_call(policy, states),
        "peak_mb": cost.peak_mb,
    }


def mean_ess(
    setting: ControlSetting,
    chain: Chain,
    states: int = CERTIFIED_STATES,
    paths: int = CERTIFIED_PATHS,
) -> float:
    """Mean effective sample size, a share, of a posterior's paths in held-out states."""
    posterior = Posterior(setting.target, chain)
    found = []
    for state in setting.held_out_states(states):
        drawn = posterior.given(state[None]).draw(paths, seed=1)
        assert drawn.log_w is not None
        found.append(effective_sample_size(drawn.log_w))
    return sum(found) / len(found)


def seconds_per_call(policy: Policy, states: Tensor, calls: int = TIMED_CALLS) -> float:
    """Wall time of one call of a policy in the given states, the first one left out."""
    generator = torch.Generator().manual_seed(0)
    policy(states, generator)
    start = time.perf_counter()
    for _ in range(calls):
        policy(states, generator)
    return (time.perf_counter() - start) / calls


def _score(played: Any) -> float | None:
    try:
        return played.score
    except InputError:
        return None
