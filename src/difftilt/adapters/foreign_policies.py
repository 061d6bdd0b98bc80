"""Diffusion policies that other libraries trained, read by a table of names.

    policy = foreign_policy(load_tensors("diffusion.pt"), "cleandiffuser", schedule="vp_linear")
    policy = policy.measured(states, actions)          # the variances of a chain of few steps

The network has to be the residual perceptron of IDQL (``models.residual``), which reads action,
time features and state side by side; what differs between libraries is what its layers are called.
``LAYOUTS`` has one table per library, "{k}" standing for the number of a block. Sizes are read off
the shapes of the weights.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from difftilt.adapters.folders import fill, read_weights
from difftilt.adapters.policies import DiffusionPolicy, load_policy, new_policy
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
NORMALISATION = "blocks.{k}.layers.0"
READ_OFF = ("observations", "actions", "size")
OPTIONS = tuple(f.name for f in fields(PolicyConfig) if f.name not in READ_OFF)


def load_tensors(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, an average of them first where it holds one.

    Raises:
        InputError: it cannot be read, or holds no tensors by name.
    """
    found: Any = read_weights(Path(file).expanduser())
    if isinstance(found, Mapping):
        found = next((found[name] for name in NESTED if name in found), found)
    return _tensors(found, str(file))


def foreign_policy(
    weights: Mapping[str, Tensor],
    layout: str | Layout = "cleandiffuser",
    states: Tensor | None = None,
    **config: Any,
) -> DiffusionPolicy:
    """A policy with another library's weights.

    Its chain has DDPM's variances, which are too small for few steps, until ``measured`` on data
    (which also shows a wrong schedule: the error of noise at the last time is then not small).

    Arguments:
        weights: by their foreign names; a common prefix does not matter.
        layout: the library's name in ``LAYOUTS``, or a table of our names to theirs.
        states: (n, O) data by whose mean and deviation it was trained on standardised states;
            None: it reads states as they are.
        **config: further fields of ``PolicyConfig`` (schedule, training_steps, unit_time, bound).

    Raises:
        InputError: no tensors by name, an incomplete layout, a layer that the weights have not or
            of a wrong shape, states of another width, or an unknown option.
        CheckpointError: the layers do not fit together.
    """
    for name in config:
        if name not in OPTIONS:
            raise InputError(f"unknown option {name!r} of a policy; options: {', '.join(OPTIONS)}")
    own = _renamed(_tensors(weights, "weights"), _table(layout))
    policy = new_policy(_config(own, config))
    network = policy.network
    if states is not None:
        network.standardised_by(_fitting(states, policy.config.observations))
    kept = {name: getattr(network, name) for name in ("centre", "spread")}
    fill(network, {**own, **kept}, "another library")
    return policy


def read_policy(source: str | Path) -> DiffusionPolicy:
    """A policy of a folder that ``save`` wrote, or of a file of another library's weights.

    Of a file it takes ``foreign_policy``'s own options.

    Raises:
        InputError: there is nothing, or the weights are no policy's.
        CheckpointError: the folder is broken.
    """
    place = Path(source).expanduser()
    if not place.exists():
        raise InputError(
            f"there is no policy at {place}; name a folder that save wrote, or a file of weights"
        )
    return load_policy(place) if place.is_dir() else foreign_policy(load_tensors(place))


def _tensors(found: Any, source: str) -> dict[str, Tensor]:
    """What was found, if it is tensors by name."""
    if not isinstance(found, Mapping):
        raise InputError(
            f"{source} must hold tensors by name (a state dict), and is a {type(found).__name__}"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{source} must hold tensors by name (a state dict), and under {name!r} has a "
                f"{type(value).__name__}"
            )
    return dict(found)


def _table(layout: str | Layout) -> Layout:
    """The table of a layout: every layer of ours, one name each."""
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise InputError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
        return LAYOUTS[layout]
    ours = LAYOUTS["cleandiffuser"]
    for name in sorted(ours.keys() ^ layout.keys()):
        remark = "lacks" if name in ours else "has an unknown layer"
        raise InputError(f"the layout {remark} {name!r}; it names {', '.join(ours)}")
    for name, theirs in layout.items():
        if not isinstance(theirs, str) or ("{k}" in name) != ("{k}" in theirs):
            raise InputError(
                f"the layout names {name!r} {theirs!r}; it needs text, with {{k}} for the number "
                "of a block, and only there"
            )
    return layout


def _renamed(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    prefix = _prefix(weights, layout["first"])
    found: dict[str, Tensor] = {}
    for ours, theirs in layout.items():
        k = 0
        while prefix + f"{_numbered(theirs, k)}.weight" in weights:
            for part in ("weight", "bias"):
                name = f"{prefix}{_numbered(theirs, k)}.{part}"
                found[f"{_numbered(ours, k)}.{part}"] = _checked(weights, name, _axes(ours, part))
            k += 1
            if "{k}" not in ours:
                break
        if k == 0:
            missing = prefix + _numbered(theirs, 0)
            raise InputError(f"the weights have no layer {missing!r}; is it the right layout?")
    return found


def _numbered(name: str, k: int) -> str:
    return name.replace("{k}", str(k))


def _axes(ours: str, part: str) -> int:
    """2 of a linear layer's weight, 1 of a bias and of what a normalisation multiplies by."""
    return 2 if part == "weight" and ours != NORMALISATION else 1


def _checked(weights: Mapping[str, Tensor], name: str, axes: int) -> Tensor:
    if name not in weights:
        raise InputError(f"the weights have no {name}; this network has biases")
    value = weights[name]
    if value.ndim != axes or value.numel() == 0 or not value.is_floating_point():
        raise InputError(
            f"{name} must have {axes} axes of floats, and has the shape {tuple(value.shape)} of "
            f"{value.dtype}; is it the right layout?"
        )
    return value.float()


def _fitting(states: Tensor, observations: int) -> Tensor:
    if states.ndim != 2 or states.shape[1] != observations or len(states) < 2:
        raise InputError(
            f"this policy reads states of {observations} numbers; standardise it by states (n, "
            f"{observations}), n >= 2, not by {tuple(states.shape)}"
        )
    if not bool(states.isfinite().all()):
        raise InputError("a state is not finite; standardise a policy by finite states")
    return states.float()


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
    hidden = len(own["blocks.0.layers.1.bias"])
    if inputs <= embedding + actions:
        raise InputError(
            f"the first layer reads {inputs} numbers, of which {embedding} are of the time and "
            f"{actions} of the action: there is no state; is it a policy?"
        )
    if hidden % width or embedding % 2:
        raise InputError(
            f"the blocks are {hidden} wide in a stream of {width}, and the time becomes "
            f"{embedding} numbers; the first must be a multiple, the last even"
        )
    size = ResidualSize(width, blocks, hidden // width, embedding, "mish")
    return replace(PolicyConfig(inputs - embedding - actions, actions, size), **config)
