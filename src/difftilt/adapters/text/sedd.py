"""SEDD (score-entropy discrete diffusion, absorbing): told the noise level, gives a log-score.

A log-score of a masked position is the log-probability of its token up to a constant of the state
(Ou et al. 2024, arXiv 2406.03736, theorem 1), which ``log_softmax`` removes; so the network's raw
output serves as logits. A chain's time t is told as ``sigma = -log(1 - (1 - 1e-3) t)``.

Source: Lou et al. 2024 (arXiv 2310.16834); checkpoints louaaron/sedd-small and -medium.
"""

from collections.abc import Mapping
from typing import Any

from difftilt.adapters.text.ddit import DDiTSize
from difftilt.adapters.text.ddit_network import Published, log_linear
from difftilt.adapters.text.files import setting
from difftilt.errors import InputError


def is_sedd(config: Mapping[str, Any]) -> bool:
    """Whether a config is SEDD's: the settings of its training, without a model type."""
    return {"graph", "model", "tokens"} <= config.keys()


def sedd(config: Mapping[str, Any]) -> Published:
    """Settings from a config.json.

    Raises:
        InputError: a value is missing, or the noise is uniform instead of a mask.
    """
    model, graph = setting(config, "model"), setting(config, "graph")
    if graph.get("type") != "absorb":
        raise InputError(
            f"this SEDD was trained with {graph.get('type')!r} noise, where every token can change "
            "at every step; only 'absorb' (masks) is supported"
        )
    size = DDiTSize(
        setting(config, "tokens") + 1,
        setting(model, "hidden_size"),
        setting(model, "n_heads"),
        setting(model, "n_blocks"),
        setting(model, "cond_dim"),
    )
    return Published(size, "", log_linear, None, setting(model, "length"), dict(config))
