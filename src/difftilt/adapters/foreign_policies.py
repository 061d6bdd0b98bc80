"""Diffusion policies that other libraries trained, read by a table of names.

    policy = foreign_policy(load_tensors("diffusion.pt"), "cleandiffuser", schedule="vp_linear")

The network has to be the residual perceptron of IDQL (``models.residual``), which reads action,
time features and state side by side; what differs between libraries is what its layers are called.
``LAYOUTS`` has one table per library, "{k}" standing for the number of a block. Sizes are read off
the shapes of the weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from difftilt.adapters.folders import fill, read_weights
from difftilt.adapters.policies import DiffusionPolicy, new_policy
from difftilt.adapters.policy_config import PolicyConfig
from difftilt.errors import InputError
from difftilt.models.residual import ResidualSize

Layout = Mapping[str, str]

LAYOUTS: dict[str, Layout] = {
    "cleandiffuser": {
        "time.network.layers.0": "time_mlp.0",
        "time.network.layers.2": "time_mlp.2",
        "first": "affine_in",
        "blocks.{k}.layers.0": "ln_resnet.{k}.net.1",
        "blocks.{k}.layers.1": "ln_resnet.{k}.net.2",
        "blocks.{k}.layers.3": "ln_resnet.{k}.net.4",
        "last": "affine_out",
    },
}
NESTED = ("model_ema", "ema", "model", "state_dict")


def load_tensors(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, an average of them first where it holds one.

    Raises:
        InputError: it cannot be read as tensors alone.
    """
    found: Any = read_weights(Path(file).expanduser())
    nested = next((name for name in NESTED if name in found), None)
    return found if nested is None else found[nested]


def foreign_policy(
    weights: Mapping[str, Tensor],
    layout: str | Layout = "cleandiffuser",
    states: Tensor | None = None,
    **config: Any,
) -> DiffusionPolicy:
    """A policy with another library's weights.

    Arguments:
        weights: by their foreign names; a common prefix does not matter.
        layout: the library's name in ``LAYOUTS``, or a table of our names to theirs.
        states: (n, O) data by whose mean and deviation it was trained on standardised states;
            None: it reads states as they are.
        **config: further fields of ``PolicyConfig`` (schedule, training_steps, unit_time, bound).

    Raises:
        InputError: unknown layout, or a layer that the weights have not.
        CheckpointError: the layers do not fit together.
    """
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise InputError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
        layout = LAYOUTS[layout]
    own = _renamed(weights, layout)
    policy = new_policy(_config(own, config))
    network = policy.network
    if states is not None:
        network.standardised_by(states)
    kept = {name: getattr(network, name) for name in ("centre", "spread")}
    fill(network, {**own, **kept}, "another library")
    return policy


def _renamed(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    prefix = _prefix(weights, layout["first"])
    found: dict[str, Tensor] = {}
    for ours, theirs in layout.items():
        k = 0
        while _copy(found, weights, (ours.format(k=k), prefix + theirs.format(k=k))):
            k += 1
            if "{k}" not in ours:
                break
        if k == 0:
            missing = prefix + theirs.format(k=0)
            raise InputError(f"the weights have no layer {missing!r}; is it the right layout?")
    return found


def _copy(found: dict[str, Tensor], weights: Mapping[str, Tensor], names: tuple[str, str]) -> bool:
    ours, theirs = names
    if f"{theirs}.weight" not in weights:
        return False
    for part in ("weight", "bias"):
        if f"{theirs}.{part}" not in weights:
            raise InputError(f"the weights have no {theirs}.{part}; this network has biases")
        found[f"{ours}.{part}"] = weights[f"{theirs}.{part}"].float()
    return True


def _prefix(weights: Mapping[str, Tensor], first: str) -> str:
    """What stands before every name, e.g. the name of the network in its agent."""
    ending = f"{first}.weight"
    found = [name for name in weights if name == ending or name.endswith(f".{ending}")]
    if not found:
        raise InputError(f"the weights have no layer {first!r}; is it the right layout?")
    return min(found, key=len).removesuffix(ending)


def _config(own: Mapping[str, Tensor], config: Mapping[str, Any]) -> PolicyConfig:
    width, inputs = own["first.weight"].shape
    embedding, actions = len(own["time.network.layers.2.bias"]), len(own["last.bias"])
    blocks = sum(name.startswith("blocks.") and name.endswith("layers.0.bias") for name in own)
    expansion = len(own["blocks.0.layers.1.bias"]) // width
    if inputs <= embedding + actions:
        raise InputError(
            f"the first layer reads {inputs} numbers, of which {embedding} are of the time and "
            f"{actions} of the action: there is no state; is it a policy?"
        )
    size = ResidualSize(width, blocks, expansion, embedding)
    return replace(PolicyConfig(inputs - embedding - actions, actions, size), **config)
