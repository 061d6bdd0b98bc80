"""SEDD, MDLM and BD3-LM: published names in, the written-out formula's log-probabilities out."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from difftilt.adapters.text.base import load_text_model
from difftilt.adapters.text.ddit_network import DDiTNetwork, log_linear
from difftilt.errors import InputError
from tiny_text_models import assert_same, at_masks, expected, level_of, partly_masked

WIDTH, HEADS, BLOCKS, LEVELS, TOKENS = 16, 2, 2, 6, 30
MASK = TOKENS

SEDD: dict[str, Any] = {
    "tokens": TOKENS,
    "graph": {"type": "absorb", "file": "data"},
    "noise": {"type": "loglinear"},
    "model": {
        "name": "small",
        "type": "ddit",
        "hidden_size": WIDTH,
        "cond_dim": LEVELS,
        "length": 12,
        "n_blocks": BLOCKS,
        "n_heads": HEADS,
        "scale_by_sigma": True,
        "dropout": 0.1,
    },
}
MDLM: dict[str, Any] = {
    "model_type": "mdlm",
    "architectures": ["MDLM"],
    "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
    "vocab_size": TOKENS + 1,
    "model_length": 12,
    "hidden_dim": WIDTH,
    "cond_dim": LEVELS,
    "n_blocks": BLOCKS,
    "n_heads": HEADS,
    "dropout": 0.1,
    "time_conditioning": False,
}
BD3LM: dict[str, Any] = {**MDLM, "model_type": "bd3lm", "block_size": 4, "cross_attn": True}
PREFIX = {"sedd": "", "mdlm": "backbone.", "bd3lm": "backbone."}
CONFIG = {"sedd": SEDD, "mdlm": MDLM, "bd3lm": BD3LM}


def published_shapes(prefix: str, adaptive: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of a published checkpoint of this size."""
    shapes: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (TOKENS + 1, WIDTH)}
    if adaptive:
        shapes |= {
            "sigma_map.mlp.0.weight": (LEVELS, 256),
            "sigma_map.mlp.0.bias": (LEVELS,),
            "sigma_map.mlp.2.weight": (LEVELS, LEVELS),
            "sigma_map.mlp.2.bias": (LEVELS,),
            "output_layer.adaLN_modulation.weight": (2 * WIDTH, LEVELS),
            "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
        }
    shapes["rotary_emb.inv_freq"] = (WIDTH // HEADS // 2,)
    for i in range(BLOCKS):
        block = {
            "norm1.weight": (WIDTH,),
            "attn_qkv.weight": (3 * WIDTH, WIDTH),
            "attn_out.weight": (WIDTH, WIDTH),
            "norm2.weight": (WIDTH,),
            "mlp.0.weight": (4 * WIDTH, WIDTH),
            "mlp.0.bias": (4 * WIDTH,),
            "mlp.2.weight": (WIDTH, 4 * WIDTH),
            "mlp.2.bias": (WIDTH,),
        }
        if adaptive:
            block["adaLN_modulation.weight"] = (6 * WIDTH, LEVELS)
            block["adaLN_modulation.bias"] = (6 * WIDTH,)
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {
        "output_layer.norm_final.weight": (WIDTH,),
        "output_layer.linear.weight": (TOKENS + 1, WIDTH),
        "output_layer.linear.bias": (TOKENS + 1,),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def random_weights(prefix: str, adaptive: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        name: 0.4 * torch.randn(shape, generator=generator)
        for name, shape in published_shapes(prefix, adaptive).items()
    }


def written(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(weights), folder / "model.safetensors")
    return folder


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turned(x: Tensor) -> Tensor:
    """Rotary positions as complex numbers: feature pair j at place l turns by l 10000^(-2j/d)."""
    half = x.shape[-1] // 2
    pair = torch.complex(x[..., :half], x[..., half:])
    rate = torch.tensor([10_000.0 ** (-j / half) for j in range(half)]).to(x)
    angle = torch.arange(x.shape[-2]).to(x)[:, None] * rate
    rotated = pair * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([rotated.real, rotated.imag], -1)


def formula(w: Mapping[str, Tensor], ids: Tensor, sigma: Tensor, visible: Tensor) -> Tensor:
    """Logits (B, L, V) written out in float64, without a module."""
    wave = torch.tensor([math.exp(-math.log(10_000.0) * j / 128) for j in range(128)]).double()
    angle = sigma.double()[:, None] * wave
    level = torch.cat([angle.cos(), angle.sin()], 1)
    level = level @ w["sigma_map.mlp.0.weight"].T + w["sigma_map.mlp.0.bias"]
    level = level * level.sigmoid() @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"]
    level = level * level.sigmoid()

    def modulation(name: str, parts: int) -> tuple[Tensor, ...]:
        whole = level @ w[f"{name}.adaLN_modulation.weight"].T + w[f"{name}.adaLN_modulation.bias"]
        return whole[:, None].chunk(parts, 2)

    x = w["vocab_embed.embedding"][ids]
    for i in range(BLOCKS):
        name = f"blocks.{i}"
        shift, scale, gate, shift_2, scale_2, gate_2 = modulation(name, 6)
        seen = layer_norm(x, w[f"{name}.norm1.weight"]) * (1 + scale) + shift
        heads = (seen @ w[f"{name}.attn_qkv.weight"].T).chunk(3, 2)
        query, key, value = (torch.stack(part.chunk(HEADS, 2), 1) for part in heads)
        scores = turned(query) @ turned(key).transpose(2, 3) / math.sqrt(WIDTH // HEADS)
        mixed = scores.masked_fill(~visible, -torch.inf).softmax(3) @ value
        joined = torch.cat(list(mixed.unbind(1)), 2)
        x = x + gate * (joined @ w[f"{name}.attn_out.weight"].T)
        seen = layer_norm(x, w[f"{name}.norm2.weight"]) * (1 + scale_2) + shift_2
        inner = seen @ w[f"{name}.mlp.0.weight"].T + w[f"{name}.mlp.0.bias"]
        cubic = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
        inner = inner * (1 + cubic.tanh()) / 2
        x = x + gate_2 * (inner @ w[f"{name}.mlp.2.weight"].T + w[f"{name}.mlp.2.bias"])
    shift, scale = modulation("output_layer", 2)
    x = layer_norm(x, w["output_layer.norm_final.weight"]) * (1 + scale) + shift
    return x @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


def in_float64(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value.double() for name, value in weights.items()}


@pytest.mark.parametrize("family", CONFIG)
def test_a_checkpoint_says_what_the_formula_says(family: str, tmp_path: Path):
    weights = random_weights(PREFIX[family])
    model = load_text_model(written(tmp_path, CONFIG[family], weights))
    ids, time = partly_masked(TOKENS, MASK), 0.3
    sigma = torch.full((4,), -math.log(1 - 0.999 * time) if family == "sedd" else 0.0)
    block = torch.arange(9) // 4
    visible = block[:, None] >= block if family == "bd3lm" else torch.ones(9, 9).bool()
    theirs = formula(in_float64(weights, PREFIX[family]), ids, sigma, visible)
    level = level_of(torch.arange(1, 9, 2).expand(4, -1), time)
    with torch.no_grad():
        ours = model.denoiser()(ids, level)
    assert theirs.std() > 0.3
    assert_same(ours, expected(theirs, ids, (MASK,)))
    assert (model.network.mask_id, model.max_length, model.shift) == (MASK, 12, False)


@pytest.mark.parametrize("family", CONFIG)
def test_weights_keep_their_published_names(family: str, tmp_path: Path):
    weights = random_weights(PREFIX[family])
    weights[f"{PREFIX[family]}rotary_emb.inv_freq"] = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    network = load_text_model(written(tmp_path, CONFIG[family], weights)).network
    assert isinstance(network, DDiTNetwork)
    saved = network.published_weights()
    assert saved.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-6, atol=0)


def test_a_network_without_levels_has_none(tmp_path: Path):
    weights = random_weights("backbone.", adaptive=False)
    network = load_text_model(written(tmp_path, {**MDLM, "adaln": False}, weights)).network
    ids = partly_masked(TOKENS, MASK)
    with torch.no_grad():
        early, late = (network.hidden(ids, torch.full((4,), t)) for t in (0.1, 1.0))
    assert torch.equal(early, late) and early.std() > 0.1


def test_sedd_is_told_the_time_and_mdlm_is_not(tmp_path: Path):
    ids = partly_masked(TOKENS, MASK)
    differences = {}
    for family in ("sedd", "mdlm"):
        (tmp_path / family).mkdir()
        weights = random_weights(PREFIX[family])
        network = load_text_model(written(tmp_path / family, CONFIG[family], weights)).network
        with torch.no_grad():
            early, late = (network.hidden(ids, torch.full((4,), t)) for t in (0.1, 1.0))
        differences[family] = float((early - late).abs().max())
    assert differences["sedd"] > 0.1 and differences["mdlm"] == 0


def test_the_noise_level_masks_the_share_that_time_says():
    time = torch.tensor([1e-3, 0.25, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(1 - (-log_linear(time)).exp(), 0.999 * time)


def test_a_block_sees_no_later_block(tmp_path: Path):
    model = load_text_model(written(tmp_path, BD3LM, random_weights("backbone.")))
    ids = partly_masked(TOKENS, MASK, length=12)
    changed = ids.clone()
    changed[:, 8:] = 7
    with torch.no_grad():
        one, other = (model.network.hidden(x, torch.ones(4)) for x in (ids, changed))
    assert torch.equal(one[:, :8], other[:, :8])
    changed = ids.clone()
    changed[:, 3] = 7
    with torch.no_grad():
        other = model.network.hidden(changed, torch.ones(4))
    assert bool(((one - other).abs().amax(2) > 1e-6).all())


def test_padding_is_as_if_it_were_not_there(tmp_path: Path):
    model = load_text_model(written(tmp_path, MDLM, random_weights("backbone.")), pad_id=3)
    ids = partly_masked(TOKENS, MASK)
    padded = torch.cat([ids, torch.full((4, 3), 3)], 1)
    level = at_masks(ids)
    with torch.no_grad():
        short, long = (model.denoiser()(x, level) for x in (ids, padded))
    assert_same(long, short.double())
    assert model.banned == (3,)


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    weights = random_weights("backbone.")
    kept = {k: v for k, v in weights.items() if "blocks.1.norm2" not in k}
    with pytest.raises(InputError, match=r"they lack blocks\.1\.norm2\.weight"):
        load_text_model(written(tmp_path, MDLM, kept))
    more = {**weights, "backbone.blocks.2.norm1.weight": torch.ones(WIDTH)}
    with pytest.raises(InputError, match=r"also hold blocks\.2\.norm1\.weight"):
        load_text_model(written(tmp_path, MDLM, more))
    with pytest.raises(InputError, match=r"differ in vocab_embed\.embedding, .*\.\.\."):
        load_text_model(written(tmp_path, {**MDLM, "hidden_dim": 2 * WIDTH}, weights))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SEDD, "graph": {"type": "uniform"}}, "only 'absorb'"),
        ({**BD3LM, "causal": True}, "autoregressive"),
        ({**MDLM, "n_heads": 3}, "even multiple of heads=3"),
        ({k: v for k, v in MDLM.items() if k != "hidden_dim"}, "lacks 'hidden_dim'"),
    ],
)
def test_configs_that_are_none_are_refused(config: dict, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        load_text_model(written(tmp_path, config, {"x": torch.ones(1)}))
