"""LLaDA and Dream: code that comes with the weights, on this version of transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from difftilt.adapters.text.base import load_text_model
from difftilt.adapters.text.remote_code import plain_rotary
from difftilt.errors import InputError
from tiny_text_models import assert_same, at_masks, expected, partly_masked, plain_foreign

MASK = 31
SPLIT = {"llada": "head", "dream": "backbone"}


def plain_logits(folder: Path, family: str, ids: torch.Tensor) -> torch.Tensor:
    """The plain model's logits, aligned: row i is about token i."""
    model = plain_foreign(folder, family)
    with torch.no_grad():
        logits = (
            model(input_ids=ids, use_cache=False).logits
            if family == "llada"
            else model(input_ids=ids).logits
        )
    return logits if family == "llada" else torch.cat([logits[:, :1], logits[:, :-1]], 1)


@pytest.mark.parametrize("family", SPLIT)
def test_a_folder_gives_the_plain_models_log_probs(family: str, foreign_folder):
    folder = foreign_folder(family)
    model = load_text_model(folder, trust_remote_code=True)
    ids = partly_masked(31, MASK)
    with torch.no_grad():
        ours = model.denoiser()(ids, at_masks(ids))
    theirs = plain_logits(folder, family, ids)
    assert theirs.std() > 0.3
    assert_same(ours, expected(theirs, ids, (MASK,)))
    assert model.network.split == SPLIT[family]
    assert model.shift == (family == "dream")


@pytest.mark.parametrize("family", SPLIT)
def test_padding_is_as_if_it_were_not_there(family: str, foreign_folder):
    model = load_text_model(foreign_folder(family), trust_remote_code=True, pad_id=3)
    ids = partly_masked(31, MASK)
    level = at_masks(ids)
    padded = torch.cat([ids, torch.full((4, 5), 3)], 1)
    with torch.no_grad():
        short, long = (model.denoiser()(x, level) for x in (ids, padded))
    assert_same(long, short.double())
    assert model.banned == (3,)


@pytest.mark.parametrize("family", SPLIT)
def test_all_positions_are_seen_by_all(family: str, foreign_folder):
    network = load_text_model(foreign_folder(family), trust_remote_code=True).network
    ids = partly_masked(31, MASK)
    for place in (0, 8):
        changed = ids.clone()
        changed[:, place] = 5 + (ids[:, place] - 4) % 26
        with torch.no_grad():
            one, other = (network.hidden(x, torch.ones(4)) for x in (ids, changed))
        assert bool(((one - other).abs().amax(2) > 1e-6).all())


@pytest.mark.parametrize("family", SPLIT)
def test_the_head_sees_revealed_positions_alone(family: str, foreign_folder, head_rows):
    model = load_text_model(foreign_folder(family), trust_remote_code=True)
    rows = head_rows(model.network.model.get_output_embeddings())
    ids = partly_masked(31, MASK)
    with torch.no_grad():
        model.denoiser()(ids, at_masks(ids))
    assert rows == [4 * 4]


def test_buffers_that_no_file_holds_are_computed(foreign_folder):
    model = load_text_model(foreign_folder("dream"), trust_remote_code=True).network.model
    found = model.model.rotary_emb.inv_freq
    torch.testing.assert_close(found, torch.tensor([100.0 ** (-j / 4) for j in range(4)]))


def test_plain_frequencies_read_the_config_of_either_version():
    from types import SimpleNamespace

    sizes = {"hidden_size": 16, "num_attention_heads": 2}
    old = SimpleNamespace(rope_theta=50.0, **sizes)
    new = SimpleNamespace(rope_parameters={"rope_theta": 50.0}, **sizes)
    exact = torch.tensor([50.0 ** (-j / 4) for j in range(4)])
    for config in (old, new):
        frequencies, factor = plain_rotary(config)
        torch.testing.assert_close(frequencies, exact)
        assert factor == 1.0


def test_code_does_not_run_untrusted(foreign_folder):
    with pytest.raises(InputError, match="pass trust_remote_code=True"):
        load_text_model(foreign_folder("dream"))


def test_missing_weights_are_named(foreign_folder):
    folder = foreign_folder("dream")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"lack model\.norm\.bias"):
        load_text_model(folder, trust_remote_code=True)


def test_code_that_fails_says_how(foreign_folder):
    folder = foreign_folder("llada")
    (folder / "modeling_tiny_llada.py").write_text("raise RuntimeError('needs a GPU')")
    with pytest.raises(InputError, match="RuntimeError: needs a GPU"):
        load_text_model(folder, trust_remote_code=True)


def test_a_config_without_code_is_refused(foreign_folder):
    folder = foreign_folder("dream")
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="names no code of its own"):
        load_text_model(folder, trust_remote_code=True)


def test_a_mask_that_is_no_id_is_refused(foreign_folder):
    with pytest.raises(InputError, match="mask_id=99 is none of the model's 32 ids"):
        load_text_model(foreign_folder("dream"), trust_remote_code=True, mask_id=99)
