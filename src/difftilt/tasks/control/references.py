"""Returns of a random policy and of the best collecting agent: what scores are normalised with.

The table is a file that ``scripts/choose_control_agents.py`` writes from what it measures: means
and standard errors over ``episodes`` episodes.
"""

import json
from dataclasses import dataclass

from difftilt.errors import InputError
from difftilt.tasks.shipped import shipped_folder


@dataclass(frozen=True)
class Reference:
    """Mean returns in one environment.

    Arguments:
        random: of actions drawn uniformly.
        random_error: its standard error.
        expert: of the best agent, without noise.
        expert_error: its standard error.
        episodes: how many each mean is of.
        agents: means and standard errors of all agents without noise, the best last.
    """

    random: float
    random_error: float
    expert: float
    expert_error: float
    episodes: int
    agents: list[list[float]]


def references() -> dict[str, Reference]:
    """Every environment of the table."""
    text = (shipped_folder("control") / "references.json").read_text()
    return {name: Reference(**row) for name, row in json.loads(text).items()}


def reference(environment: str) -> Reference:
    """The returns of one environment.

    Raises:
        InputError: the table does not have it.
    """
    known = references()
    if environment not in known:
        raise InputError(
            f"no reference returns are known for {environment!r}; scores are defined for "
            f"{', '.join(known)}: report plain returns instead"
        )
    return known[environment]
