"""Make the data sets of offline control, and print what they hold.

    python scripts/collect_control_data.py
    python scripts/collect_control_data.py --names hopper-medium --folder data

``load_data("hopper-medium")`` makes one on first use as well; this makes several, or elsewhere.
Below ``MINARI_DATASETS_PATH=FOLDER`` Minari finds them as ``difftilt/...``. Scores are on our own
references, not D4RL's.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from difftilt.tasks.control.collection import DATA_SETS, made
from difftilt.tasks.control.data import OfflineData, load_data
from difftilt.tasks.control.evaluation import Returns


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    names: tuple[str, ...] = DATA_SETS
    folder: Path | None = None
    """Of all data sets; the user's cache by default."""
    transitions: int = 100_000
    """In each data set, about."""


def line(name: str, data: OfflineData, megabytes: float) -> str:
    """A row of the table."""
    played = Returns(data.environment, data.returns, data.lengths)
    spread = data.returns.quantile(data.returns.new_tensor([0.0, 0.5, 1.0])).tolist()
    low, middle, high = (f"{value:.0f}" for value in spread)
    return (
        f"| {name} | {len(data)} | {data.episodes} | {played.mean:.0f} | {low} / {middle} / {high} "
        f"| {played.score:.1f} | {megabytes:.1f} |"
    )


def main(settings: Settings) -> None:
    """Make and describe each data set."""
    print("| data | transitions | episodes | mean return | least / median / most | score | MB |")
    print("|---|---|---|---|---|---|---|")
    for name in settings.names:
        place = made(name, settings.folder, settings.transitions)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        print(line(name, load_data(place), size / 1e6), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
