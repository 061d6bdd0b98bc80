"""Fitted policies and critics kept on disk, so that methods share what they start from.

A folder is named by a hash of what made its contents; weights are safetensors, the rest JSON.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from difftilt.adapters.folders import write_whole
from difftilt.adapters.policies import DiffusionPolicy, load_policy
from difftilt.errors import CheckpointError
from difftilt.tasks.control.collection import cache_folder
from difftilt.tasks.control.critics import Critic, Standardised
from difftilt.tasks.control.data import OfflineData

NOTE, WEIGHTS = "critic.json", "critic.safetensors"


def data_digest(data: OfflineData) -> str:
    """A hash of the transitions."""
    digest = hashlib.sha256(data.environment.encode())
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        values = getattr(data, name).contiguous()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def place(kind: str, made_by: Mapping[str, Any]) -> Path:
    """The folder of what ``made_by`` makes."""
    text = json.dumps(made_by, sort_keys=True)
    return cache_folder() / "control" / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def kept_policy(made_by: Mapping[str, Any], make: Callable[[], DiffusionPolicy]) -> DiffusionPolicy:
    """The policy of this recipe, fitted if it was not kept yet."""
    folder = place("policy", made_by)
    if folder.exists():
        return load_policy(folder)
    policy = make()
    policy.save(folder)
    return policy


def kept_critic(made_by: Mapping[str, Any], make: Callable[[], Critic]) -> Critic:
    """The critic of this recipe, fitted if it was not kept yet."""
    folder = place("critic", made_by)
    if folder.exists():
        return load_critic(folder)
    critic = make()
    save_critic(critic, folder)
    return critic


def save_critic(critic: Critic, folder: Path) -> None:
    """Write a critic; the folder appears whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    state = critic.modules().state_dict()
    weights = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    first = critic.value.get_submodule("layers.0")
    assert isinstance(first, nn.Linear)
    twin = critic.twins[0].get_submodule("layers.0")
    assert isinstance(twin, nn.Linear)
    note = {
        "observations": first.in_features,
        "actions": twin.in_features - first.in_features,
        "width": first.out_features,
        "reward_scale": critic.reward_scale,
        "relative": critic.relative,
    }

    def write(new: Path) -> None:
        new.mkdir()
        (new / NOTE).write_text(json.dumps(note, indent=1) + "\n")
        save_file(weights, new / WEIGHTS)

    write_whole(folder, write, "critic")


def load_critic(folder: Path) -> Critic:
    """A critic that ``save_critic`` wrote.

    Raises:
        CheckpointError: a file is missing, broken or does not fit.
    """
    try:
        note = json.loads((folder / NOTE).read_text())
        observations, actions, width = (note[k] for k in ("observations", "actions", "width"))
        twins = [Standardised(observations, actions, width) for _ in range(2)]
        value = Standardised(observations, 0, width)
        relative = note.get("relative", False)
        critic = Critic(nn.ModuleList(twins), value, note["reward_scale"], relative)
        critic.modules().load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # json, safetensors and torch have kinds of their own
        raise CheckpointError(
            f"{folder} holds no readable critic ({NOTE} and {WEIGHTS}); remove it, and it is "
            f"fitted again: {error}"
        ) from error
    critic.modules().eval().requires_grad_(False)
    return critic
