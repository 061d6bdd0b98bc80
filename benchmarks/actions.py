"""What an action costs: a trained policy beside guided sampling of the behaviour.

All samplers take N steps of one chain. Per step they call

| sampler | networks |
|---|---|
| trained | the posterior's own network, once, without a gradient |
| guided | the behaviour's network once, and the value's network with its gradient by the action |
| behaviour | the behaviour's network once |
| best of n | the behaviour's network on n candidates; then the critic on each |

so that trained / behaviour is 1 by construction, and guided / trained is what amortisation saves.
The value reads action, step and state, as QGPO's does (its gradient does not go through the
behaviour), and has the size of the behaviour's network unless ``--value-width`` says otherwise; the
paper's value (4 × 256 of 0.2 M weights) beside its score network (1.6 M) is the small one. Weights
are random: a cost does not depend on them. Samplers alternate, so that a busy machine slows all.

    python benchmarks/actions.py --steps 15 --batch 1 256
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from difftilt.adapters.policies import DiffusionPolicy, new_policy
from difftilt.adapters.policy_config import PolicyConfig
from difftilt.kernels.networks import full_copy
from difftilt.models.residual import ResidualSize
from difftilt.tasks.control.acting import BestActor, acting
from difftilt.tasks.control.critics import Critic, Standardised
from difftilt.tasks.control.guidance import StateGuided

BAR = 2.0
Actor = Callable[[Tensor, torch.Generator], Tensor]


def actors(policy: DiffusionPolicy, steps: int, value: ResidualSize) -> dict[str, Actor]:
    """The samplers of one policy, all of N steps."""
    chain, config = policy.chain(steps), policy.config
    guided = chain.tilted(StateGuided(value).kernel(chain))
    twins = [Standardised(config.observations, config.actions) for _ in range(2)]
    critic = Critic(nn.ModuleList(twins), Standardised(config.observations))
    behaviour = acting(chain, policy.decode)
    return {
        "trained": acting(chain.tilted(full_copy(chain)), policy.decode),
        "guided": acting(guided, policy.decode),
        "behaviour": behaviour,
        "best of 32": BestActor(behaviour, critic, 32),
    }


def measured(made: dict[str, Actor], states: Tensor, repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of one call of each sampler."""
    found: dict[str, list[float]] = {name: [] for name in made}
    generator = torch.Generator().manual_seed(0)
    for repeat in range(repeats + 1):
        for name, actor in made.items():
            start = time.process_time()
            actor(states, generator)
            if repeat:  # the first call of each warms up
                found[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(times) for name, times in found.items()}


def main(
    steps: int = 15,
    batch: tuple[int, ...] = (1, 256),
    width: int = 256,
    value_width: int | None = None,
    observations: int = 17,
    actions: int = 6,
    repeats: int = 20,
    json_file: Path | None = None,
) -> None:
    """What an action costs.

    Args:
        steps: N.
        batch: states per call.
        width: of the behaviour's network.
        value_width: of the value's network; default the same.
        observations: numbers in a state.
        actions: numbers in an action.
        repeats: alternations; medians are shown.
        json_file: write the rows there.
    """
    torch.set_num_threads(1)
    size = ResidualSize(width)
    policy = new_policy(PolicyConfig(observations, actions, size))
    made = actors(policy, steps, ResidualSize(width if value_width is None else value_width))
    rows = []
    print(f"{'states':>6} {'sampler':<11} {'CPU ms':>8} {'ms/action':>10} {'/ trained':>9}")
    for count in batch:
        times = measured(made, torch.randn(count, observations), repeats)
        for name, each in times.items():
            ratio = each / times["trained"]
            print(f"{count:>6} {name:<11} {each:>8.2f} {each / count:>10.4f} {ratio:>9.2f}")
            rows.append({"states": count, "sampler": name, "cpu_ms": each, "ratio": ratio})
    print(f"bar: guided / trained >= {BAR:g}")
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
