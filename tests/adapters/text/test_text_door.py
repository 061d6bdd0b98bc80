"""``load`` on the folder of a language model: every option reaches the prior, or is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import difftilt
from difftilt.adapters.text.base import load_text_model
from difftilt.diffusions.orders import LeftToRight
from difftilt.errors import InputError
from tiny_text import byte_tokenizer
from tiny_text_models import ddit_folder

BYTES = 257


@pytest.fixture
def mdlm_folder(tmp_path: Path) -> Path:
    return ddit_folder(tmp_path / "mdlm", BYTES, "mdlm")


def test_a_tokenizer_is_taken_live_or_from_a_folder(mdlm_folder: Path, tmp_path: Path):
    byte_tokenizer().save_pretrained(tmp_path / "words")
    texts = []
    for tokenizer in (byte_tokenizer(), tmp_path / "words", str(tmp_path / "words")):
        prior = difftilt.load(mdlm_folder, tokenizer=tokenizer)
        (drawn,) = prior.infill("ab [3] cd", lambda texts: [0.0] * len(texts)).prior_samples(1)
        texts.append(drawn.text)
    assert texts[0].startswith("ab") and texts[0].endswith("cd") and len(set(texts)) == 1
    with pytest.raises(InputError, match="came without a tokenizer, which text needs; give one"):
        difftilt.load(mdlm_folder).infill("[1]", len)


def test_order_and_temperature_are_the_prior_s(mdlm_folder: Path):
    prior = difftilt.load(
        mdlm_folder, tokenizer=byte_tokenizer(), order=LeftToRight(), temperature=2.0
    )
    chain = prior.infill("ab [2]", lambda texts: [0.0] * len(texts)).target.prior.chain
    assert chain.diffusion.order == LeftToRight()
    hidden = torch.linspace(-1, 1, 16)
    logits = prior.model.network.logits(hidden).double()
    allowed = chain.denoiser.allowed
    wanted = (logits / 2)[allowed].log_softmax(0)
    assert torch.allclose(chain.denoiser.log_probs(hidden)[allowed].double(), wanted, atol=1e-5)


def test_options_of_the_model_reach_it(mdlm_folder: Path, bert_folder: Path):
    prior = difftilt.load(mdlm_folder, mask_id=3, pad_id=5, banned=(7,), dtype=torch.float64)
    network = prior.model.network
    assert (network.mask_id, prior.model.pad_id, prior.model.banned) == (3, 5, (7,))
    assert next(network.parameters()).dtype == torch.float64
    with pytest.raises(InputError, match="unknown family 'bart'"):
        difftilt.load(bert_folder, family="bart")


def test_code_of_its_own_may_be_trusted(foreign_folder: Callable[[str], Path], tokenizer):
    folder = foreign_folder("dream")
    with pytest.raises(InputError, match="then pass trust_remote_code=True"):
        difftilt.load(folder)
    prior = difftilt.load(folder, trust_remote_code=True, tokenizer=tokenizer)
    alone = load_text_model(folder, trust_remote_code=True)
    assert prior.model.fingerprint == alone.fingerprint and prior.model.shift


@pytest.mark.parametrize("name", ["steps", "eta", "schedule", "event_shape", "guidance_scale"])
def test_options_of_other_priors_are_refused(mdlm_folder: Path, name: str, unchecked: None):
    sentence = f"mdlm is a language model, for which load has no option '{name}'; options are token"
    with pytest.raises(InputError, match=sentence):
        difftilt.load(mdlm_folder, **{name: 4})
