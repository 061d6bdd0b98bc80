"""A training as named tensors and JSON: everything that the next update depends on.

    parameter/  value/  log_z/  optimiser/  behaviour/  buffer/  random/    and step, clock, rates

What is forgotten here makes a resumed run differ from an uninterrupted one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.errors import CheckpointError
from difftilt.training.random_state import random_numbers, random_tensors, restore_random
from difftilt.training.state import TrainingState
from difftilt.values.kernel import ValueKernel

FORMAT = 2

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A training as tensors and JSON.

    Arguments:
        posterior: the sampling weights and buffers.
        tensors: all else that is a tensor.
        document: all else.
    """

    posterior: Tensors
    tensors: Tensors
    document: dict[str, Any]

    @staticmethod
    def of(state: TrainingState, identity: dict) -> "Snapshot":
        """A training between two updates; shares memory with it."""
        posterior = sampling_tensors(state.chain, state.average.average)
        return Snapshot(posterior, _training_tensors(state), _document(state, identity))

    def apply(self, state: TrainingState) -> None:
        """Put a training back; the snapshot has to fit it."""
        self._load_replay(state)
        with torch.no_grad():
            for name, tensor in _own_tensors(state).items():
                tensor.copy_(self.tensors[name])
            load_sampling(state.chain, self.posterior, state.average.average)
        for i, optimiser in enumerate(state.optimisers):
            groups = self.document["optimisers"][i]
            moments = _moments(_under(f"optimiser/{i}/", self.tensors))
            optimiser.load_state_dict({"state": moments, "param_groups": _as_tuples(groups)})
        state.step, state.elapsed = self.document["step"], self.document["elapsed"]
        state.called = state.chain.calls.total - self.document["network_calls"]
        state.plan = replace(state.plan, chunk=self.document["chunk"])
        # Older checkpoints have none: their alarm starts anew.
        state.watch.load(self.document.get("watch", state.watch.to_json()))
        random = _under("random/", self.tensors)
        restore_random(state.generator, random, self.document["random"])

    def _load_replay(self, state: TrainingState) -> None:
        try:
            for name, (behaviour, _) in state.behaviours.items():
                behaviour.load(_under(f"behaviour/{name}/", self.tensors))
            state.buffer.load(_under("buffer/", self.tensors))
        except KeyError as error:
            raise CheckpointError(f"the checkpoint lacks {error} of the replayed paths") from None


def trained(chain: Chain) -> dict[str, nn.Parameter]:
    """The parameters of ``state.trainable``, in its order, by name."""
    return {
        f"{part}.{name}": parameter
        for part, module in _modules(chain).items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def sampling_tensors(chain: Chain, weights: list[Tensor]) -> Tensors:
    """Weights under the names of the chain's parameters, with its buffers."""
    return dict(zip(trained(chain), weights, strict=True)) | _buffers(chain)


def load_sampling(chain: Chain, saved: Tensors, into: list[Tensor] | None = None) -> None:
    """Copy saved sampling weights into the chain, or into a moving average."""
    own = [p.detach() for p in trained(chain).values()] if into is None else into
    with torch.no_grad():
        for name, tensor in sampling_tensors(chain, own).items():
            tensor.copy_(saved[name])


def moment_shapes(state: TrainingState) -> dict[str, tuple[torch.Size, ...]]:
    """Shapes that a parameter's moments may have, by their prefix."""
    return {
        f"optimiser/{i}/{j}": (torch.Size(), parameter.shape)
        for i, optimiser in enumerate(state.optimisers)
        for j, parameter in enumerate(p for g in optimiser.param_groups for p in g["params"])
    }


def environment() -> dict[str, Any]:
    """What else decides the last bits of a result."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def _modules(chain: Chain) -> dict[str, nn.Module]:
    modules = {"kernel": chain.kernel, "initial": chain.initial}
    return {name: module for name, module in modules.items() if module is not None}


def _buffers(chain: Chain) -> Tensors:
    """What a network keeps besides parameters (running statistics)."""
    found = {}
    for part, module in _modules(chain).items():
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        kept = module.state_dict()
        found |= {f"{part}.{k}": v for k, v in kept.items() if k not in parameters}
    return found


def _own_tensors(state: TrainingState) -> Tensors:
    """Tensors of fixed name and shape that are restored in place."""
    weights = {f"parameter/{k}": v.detach() for k, v in trained(state.chain).items()}
    weights |= {f"value/{k}": v for k, v in _own_value(state).items()}
    return weights | {f"log_z/{k}": v for k, v in state.log_z.state_dict().items()}


def _own_value(state: TrainingState) -> Tensors:
    """The value's tensors, unless it guides the posterior: then they are the kernel's."""
    kernel = state.chain.kernel
    if state.value is None or (isinstance(kernel, ValueKernel) and kernel.value is state.value):
        return {}
    return state.value.state_dict()


def _training_tensors(state: TrainingState) -> Tensors:
    tensors = _own_tensors(state)
    for i, optimiser in enumerate(state.optimisers):
        for j, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{j}/{k}": v for k, v in moments.items()}
    for name, (behaviour, _) in state.behaviours.items():
        tensors |= {f"behaviour/{name}/{k}": v for k, v in behaviour.state().items()}
    tensors |= {f"buffer/{k}": v for k, v in state.buffer.state().items()}
    return tensors | {f"random/{k}": v for k, v in random_tensors(state.generator).items()}


def _document(state: TrainingState, identity: dict) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": state.step,
        "elapsed": state.elapsed,
        "network_calls": state.network_calls,
        "chunk": state.plan.chunk,
        "watch": state.watch.to_json(),
        "identity": identity,
        "optimisers": [optimiser.state_dict()["param_groups"] for optimiser in state.optimisers],
        "random": random_numbers(),
        "environment": environment(),
    }


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _moments(tensors: Tensors) -> dict[int, Tensors]:
    found: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        found.setdefault(int(index), {})[key] = tensor
    return found


def _as_tuples(groups: list[dict]) -> list[dict]:
    """JSON has no tuples; optimisers do (betas)."""
    return [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in groups
    ]
