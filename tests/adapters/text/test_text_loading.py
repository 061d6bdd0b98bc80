"""What is no masked language model is refused with a sentence that says why."""

import json
from pathlib import Path

import pytest
import torch

from difftilt.adapters.text.base import load_text_model
from difftilt.adapters.text.families import FAMILIES, family_of
from difftilt.adapters.text.files import weights_of
from difftilt.errors import InputError
from tiny_text_models import MASK, masked_lm


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "masked_lm"),
        ({"model_type": "new", "auto_map": {"AutoModelForMaskedLM": "m.M"}}, "masked_lm"),
        ({"model_type": "mdlm", "architectures": ["MDLM"]}, "mdlm"),
        ({"model_type": "bd3lm", "auto_map": {"AutoModelForMaskedLM": "m.M"}}, "bd3lm"),
        ({"model_type": "llada", "architectures": ["LLaDAModelLM"]}, "llada"),
        ({"model_type": "Dream", "architectures": ["DreamModel"]}, "dream"),
        ({"graph": {}, "model": {}, "tokens": 50257, "noise": {}}, "sedd"),
    ],
)
def test_a_family_is_recognised_by_its_config(config: dict, family: str):
    assert family_of(config) == family
    assert all(family_of(config, wanted) == wanted for wanted in FAMILIES)


def test_other_models_are_named():
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    with pytest.raises(InputError, match=r"'gpt2' and architectures \['GPT2LMHeadModel'\] is no"):
        family_of(config)
    with pytest.raises(InputError, match="unknown family 'bart'; choose one of sedd, mdlm"):
        family_of(config, "bart")


def test_sources_that_are_none_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no model folder at"):
        load_text_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot read .*config\.json"):
        load_text_model(tmp_path)
    with pytest.raises(InputError, match="neither a folder nor a reachable hub id"):
        load_text_model("nobody/nothing")
    with pytest.raises(InputError, match="a folder, a hub id or a live model, got int"):
        load_text_model(7)
    with pytest.raises(InputError, match="neither a transformers model nor a TokenNetwork"):
        load_text_model(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="no option 'mask'; options are mask_id"):
        load_text_model(tmp_path, mask=3)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="no JSON object"):
        load_text_model(tmp_path)


def test_a_mask_has_to_be_known(bert_folder: Path):
    live = masked_lm("Bert")
    with pytest.raises(InputError, match="says which id is the mask; pass mask_id"):
        load_text_model(live)
    assert load_text_model(live, mask_id=MASK).network.mask_id == MASK
    assert load_text_model(live, bert_folder).network.mask_id == MASK


def test_a_live_model_of_our_own_classes_is_loaded_from_its_folder():
    with pytest.raises(InputError, match="a live mdlm model is taken as a TokenNetwork alone"):
        load_text_model(masked_lm("Bert"), mask_id=MASK, family="mdlm")


def test_a_live_model_is_used_itself(tokenizer):
    live = masked_lm("Bert").train()
    model = load_text_model(live, tokenizer)
    assert model.network.model is live and not live.training
    assert not any(p.requires_grad for p in live.parameters())
    assert (model.source, model.tokenizer) == ("BertForMaskedLM", tokenizer)


def test_broken_folders_are_named(bert_folder: Path):
    (bert_folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no masked language model"):
        load_text_model(bert_folder)
    (bert_folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="holds no readable tokenizer"):
        load_text_model(bert_folder)


def test_weights_may_be_in_parts_or_pickled(tmp_path: Path):
    with pytest.raises(InputError, match="holds no"):
        weights_of(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(1)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    found = weights_of(tmp_path)
    assert found["a"].tolist() == [1, 1] and found["b"].tolist() == [0]


def test_pickled_code_does_not_run(tmp_path: Path):
    torch.save({"a": json.JSONEncoder()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="no readable file of weights"):
        weights_of(tmp_path)


def test_a_hub_id_is_found_in_the_local_cache(
    tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "hub"
    snapshot = cache / "models--some--bert" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (cache / "models--some--bert" / "refs").mkdir()
    (cache / "models--some--bert" / "refs" / "main").write_text("0" * 40)
    bert_folder.rename(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    model = load_text_model("some/bert")
    assert model.source == "some/bert" and model.network.mask_id == MASK
