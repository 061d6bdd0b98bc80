"""A training from Python in a run folder: begun or continued, finished, and read again.

    config.json  metrics.jsonl  tensorboard/  checkpoints/  status.json  posterior/

Prior, reward and sources are Python objects, so that the folder alone is no posterior: whoever
goes on with it makes the target again, and the record says whether it is the same.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from difftilt.chains.chain import Chain
from difftilt.errors import CheckpointError
from difftilt.training.checkpoint import (
    checkpoint_steps,
    load_checkpoint,
    load_posterior,
    save_posterior,
)
from difftilt.training.identity import refuse_other
from difftilt.training.loop import interruptible, train
from difftilt.training.run_folder import RunFolder, as_recorded, identity_of
from difftilt.training.state import TrainingState

FIT = "Target.fit"
"""What stands in the place of a recipe's name."""

POSTERIOR = "posterior"


def fit_in(folder: Path, state: TrainingState, record: Mapping[str, Any], resume: bool) -> None:
    """Train in a run folder and save the weights that sample; SIGINT and SIGTERM save and stop.

    Arguments:
        folder: new or empty, or, to resume, that of the same training.
        state: before its first update; its moving average samples afterwards.
        record: "config", "prior" and "reward" of the training.
        resume: continue the newest intact checkpoint, or start again where there is none.

    Raises:
        CheckpointError: the folder holds another run, or one that is not to be resumed.
        KeyboardInterrupt: a signal asked to stop; the training is saved.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with RunFolder(folder) as run:
        run.begin({"recipe": FIT, **record, "started": started}, resume)
        if resume and checkpoint_steps(run.checkpoints):
            load_checkpoint(state, run.checkpoints, run.identity)
        with interruptible() as stop:
            for _ in train(state, run, stop=stop):
                pass
        if state.progress < 1:
            raise KeyboardInterrupt(f"saved; go on with fit(..., out={str(folder)!r}, resume=True)")
        state.use_average()
        save_posterior(state.chain, folder / POSTERIOR, run.identity)


def load_fit(chain: Chain, folder: Path, record: Mapping[str, Any]) -> None:
    """Load the weights that sample of a finished training.

    Arguments:
        chain: the untrained posterior; unchanged if this raises.
        folder: of ``fit_in``.
        record: that of the training, without what only a training has.

    Raises:
        CheckpointError: no such training there, an unfinished one, or one of another target or
            form.
    """
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(
            f"there is no run in {folder}; name a folder that fit(..., out=...) wrote"
        )
    config = RunFolder(folder).config
    if config.get("recipe") != FIT:
        raise CheckpointError(
            f"{folder} is a run of difftilt train, and not of fit; draw from it with difftilt "
            f"sample {folder}"
        )
    if not (folder / POSTERIOR).exists():
        raise CheckpointError(
            f"the training in {folder} is not finished; continue it with fit(..., "
            f"out={str(folder)!r}, resume=True)"
        )
    there, here = identity_of(config), identity_of({"recipe": FIT, **record})
    saved = there["config"] if isinstance(there["config"], Mapping) else {}
    there["config"] = {name: saved.get(name) for name in here["config"]}
    refuse_other(path, there, as_recorded(there, here))
    load_posterior(chain, folder / POSTERIOR)
