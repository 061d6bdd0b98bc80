"""Choose, among saved policies, the agents that the package ships, and measure them.

    python scripts/choose_control_agents.py --environment HalfCheetah-v5 --saved runs/agents
    python scripts/choose_control_agents.py --environment PointMaze_UMaze-v3

Every saved policy plays a few episodes. The *expert* is the best one; *medium* the earliest whose
return has come 40 % of the way from random to the expert; four earlier ones lie between random and
medium. All are then measured on other episodes than those that chose them, and those returns are
what scores are normalised with. Prints a table; writes the weights and ``references.json``.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file, save_file

from difftilt.tasks.control.agents import MAZE, Linear, agents
from difftilt.tasks.control.episodes import Policy
from difftilt.tasks.control.evaluation import Returns, evaluate
from difftilt.tasks.control.references import Reference, references


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    environment: str
    saved: Path = Path("runs/agents")
    """Folder of the training script; not read for the maze, whose agents are not trained."""
    tries: int = 4
    """Episodes that choose."""
    episodes: int = 20
    """Episodes that measure."""
    medium: float = 0.4
    """How far medium is from random to expert."""
    out: Path = Path("src/difftilt/tasks/data/control")


def chosen(settings: Settings) -> list[Path]:
    """The files of the agents, from early to expert."""
    files = sorted(settings.saved.glob(f"{settings.environment}-*.safetensors"))
    tried = [_played(settings, _linear(file), settings.tries, 10_000) for file in files]
    means = torch.tensor([returns.mean for returns in tried])
    # Training starts from a policy that does nothing, whose return stands for random here.
    share = (means - means[0]) / (means.max() - means[0])
    medium = int((share >= settings.medium).nonzero()[0, 0])
    early = {int((share[: medium + 1] - settings.medium * k / 5).abs().argmin()) for k in range(5)}
    picked = [*sorted(early - {medium}), medium, int(means.argmax())]
    for index in picked:
        print(f"chose {files[index].stem}: {means[index]:.0f} in {settings.tries} episodes")
    return [files[index] for index in picked]


def main(settings: Settings) -> None:
    """Choose, write the weights, measure, write the table."""
    if settings.environment != MAZE:
        weights = [load_file(file) for file in chosen(settings)]
        stacked = {key: torch.stack([w[key] for w in weights]) for key in ("matrix", "bias")}
        save_file(stacked, settings.out / f"{settings.environment}.safetensors")
    row = measured(settings)
    table = {name: asdict(known) for name, known in references().items()}
    table[settings.environment] = asdict(row)
    (settings.out / "references.json").write_text(json.dumps(table, indent=1, sort_keys=True))
    for number, (mean, error) in enumerate([[row.random, row.random_error], *row.agents]):
        print(f"{settings.environment} agent {number}: {mean:.1f} ± {error:.1f}")


def measured(settings: Settings) -> Reference:
    """The returns of all shipped agents, on episodes that have chosen nothing."""
    played = [
        _played(settings, agent, settings.episodes, 20_000)
        for agent in agents(settings.environment)
    ]
    pairs = [[round(r.mean, 2), round(r.standard_error, 2)] for r in played]
    (random, random_error), (expert, expert_error) = pairs[0], pairs[-1]
    return Reference(random, random_error, expert, expert_error, settings.episodes, pairs[1:])


def _linear(file: Path) -> Policy:
    weights = load_file(file)
    return Linear(weights["matrix"], weights["bias"])


def _played(settings: Settings, policy: Policy, episodes: int, seed: int) -> Returns:
    return evaluate(settings.environment, policy, episodes, seed)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
