"""Posteriors on text models start at the prior, move, and leave as ordinary models."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_text_ddit import BD3LM, MDLM, PREFIX, SEDD, random_weights
from torch import nn

from difftilt.adapters.lora import lora
from difftilt.adapters.text.base import TextModel, load_text_model
from difftilt.adapters.text.export import export_text_model
from difftilt.chains.chain import Chain, Kernel
from difftilt.chains.fingerprints import fingerprint
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.diffusions.masked import GENERATED, GIVEN, SUFFIX, canvas
from difftilt.errors import InputError
from difftilt.forms import FullCopy, LoRA
from difftilt.kernels.networks import full_copy
from difftilt.noise import GeneratorNoise
from tiny_text_models import at_masks, chain_of, level_of, partly_masked, plain_foreign

pytestmark = pytest.mark.usefixtures("unchecked")

FAMILIES = ["masked_lm", "sedd", "mdlm", "bd3lm", "llada", "dream"]


@pytest.fixture
def folder_of_family(
    tmp_path: Path, bert_folder: Path, foreign_folder: Callable[[str], Path]
) -> Callable[[str], Path]:
    def write(family: str) -> Path:
        if family == "masked_lm":
            return bert_folder
        if family in ("llada", "dream"):
            return foreign_folder(family)
        folder = tmp_path / family
        folder.mkdir()
        config = {"sedd": SEDD, "mdlm": MDLM, "bd3lm": BD3LM}[family]
        (folder / "config.json").write_text(json.dumps(config))
        save_file(random_weights(PREFIX[family]), folder / "model.safetensors")
        return folder

    return write


def loaded(folder: Path) -> TextModel:
    return load_text_model(folder, trust_remote_code=True)


def drawn(chain: Chain, n: int = 16):
    return rollout(chain, n, GeneratorNoise(torch.Generator().manual_seed(8)))


def moved(kernel: Kernel) -> Kernel:
    """A kernel away from the prior."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return kernel


@pytest.mark.parametrize("form", ["copy", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_posterior_starts_at_its_prior_and_learns(family: str, form: str, folder_of_family):
    model = loaded(folder_of_family(family))
    chain = chain_of(model)
    form = FullCopy() if form == "copy" else LoRA(rank=2, targets=model.lora_targets)
    kernel = form.kernel(chain)
    posterior = chain.tilted(kernel)
    path = drawn(posterior)
    assert torch.equal(path.x_0, drawn(chain).x_0)
    assert path.log_ratio is not None and float(path.log_ratio.abs().max()) == 0
    ratio = log_ratio(posterior, path)
    assert float(ratio.detach().abs().max()) < 1e-5
    ratio.square().sum().add(ratio.sum()).backward()
    trained = [p for p in kernel.parameters() if p.grad is not None]
    assert any(float(p.grad.abs().max()) > 1e-4 for p in trained)
    moved(kernel)
    with torch.no_grad():
        assert float(log_ratio(posterior, path).abs().max()) > 1e-2
    assert fingerprint(model.network) == model.fingerprint
    touched = [n for n, p in model.network.named_parameters() if p.grad is not None]
    assert all(".lora_" in name for name in touched)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_leave_the_prior_as_it_was(family: str, folder_of_family):
    model = loaded(folder_of_family(family))
    chain = chain_of(model)
    ids = partly_masked(25, model.network.mask_id)
    level = at_masks(ids)
    with torch.no_grad():
        before = model.denoiser()(ids, level)
        kernel = moved(lora(chain, 2, targets=model.lora_targets))
        tilted = kernel.denoiser(ids, level)
        assert torch.equal(model.denoiser()(ids, level), before)
    finite = before.isfinite()
    assert torch.equal(finite, tilted.isfinite())
    assert float((tilted - before)[finite].abs().max()) > 1e-3


@pytest.mark.parametrize("adapted", [False, True], ids=["copy", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_posterior_loads_with_the_same_log_probs(
    family: str, adapted: bool, tmp_path: Path, folder_of_family
):
    model = loaded(folder_of_family(family))
    chain = chain_of(model)
    kernel = moved(lora(chain, 2, targets=model.lora_targets) if adapted else full_copy(chain))
    folder = export_text_model(model, kernel, tmp_path / "posterior")
    again = load_text_model(folder, trust_remote_code=True)
    ids = partly_masked(25, model.network.mask_id)
    level = at_masks(ids)
    with torch.no_grad():
        ours, theirs = kernel.denoiser(ids, level), again.denoiser()(ids, level)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert again.banned == model.banned and again.network.mask_id == model.network.mask_id
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".py", ".jinja"}


@pytest.mark.parametrize("adapted", [False, True], ids=["copy", "lora"])
def test_plain_transformers_reads_an_exported_posterior(
    adapted: bool, tmp_path: Path, bert_folder: Path
):
    from transformers import AutoTokenizer, BertForMaskedLM

    model = loaded(bert_folder)
    chain = chain_of(model)
    kernel = moved(lora(chain, 2, targets="all") if adapted else full_copy(chain))
    folder = export_text_model(model, kernel, tmp_path / "posterior")
    plain = BertForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("word3 [MASK] word7 [MASK] word1", return_tensors="pt").input_ids
    assert ids.tolist() == [[8, 4, 12, 4, 6]]
    with torch.no_grad():
        logits = plain(input_ids=ids).logits[:, [1, 3]]
        ours = kernel.denoiser(ids, level_of(torch.tensor([[1, 3]])))
    logits[..., list({*model.banned, 4})] = -torch.inf
    torch.testing.assert_close(logits.log_softmax(-1), ours, rtol=0, atol=1e-5)


def test_the_plain_code_reads_an_exported_posterior(tmp_path: Path, foreign_folder):
    model = loaded(foreign_folder("dream"))
    kernel = moved(full_copy(chain_of(model)))
    folder = export_text_model(model, kernel, tmp_path / "posterior")
    plain = plain_foreign(folder, "dream")
    ids = partly_masked(31, 31)
    with torch.no_grad():
        logits = plain(input_ids=ids).logits[:, 0:8:2]
        ours = kernel.denoiser(ids, at_masks(ids))
    logits[..., 31] = -torch.inf
    torch.testing.assert_close(logits.log_softmax(-1), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["masked_lm", "sedd", "dream"])
def test_only_the_posterior_reads_the_suffix(family: str, folder_of_family):
    model = loaded(folder_of_family(family))
    chain = chain_of(model, 2)
    roles = torch.tensor([[GIVEN, GENERATED, GENERATED, SUFFIX]]).expand(8, -1)
    tokens = torch.tensor([[5, 0, 0, 7]]).expand(8, -1)
    other = torch.tensor([[5, 0, 0, 9]]).expand(8, -1)
    chain = Chain(chain.denoiser, chain.diffusion, (4,))
    posterior = chain.tilted(lora(chain, 2, targets=model.lora_targets))
    path = drawn(chain.given(canvas(tokens, roles)), 8)
    same = drawn(chain.given(canvas(other, roles)), 8)
    assert torch.equal(path.x_0[:, :3], same.x_0[:, :3])
    with torch.no_grad():
        one, two = (
            log_ratio(posterior, replace(path, condition=canvas(shown, roles)))
            for shown in (tokens, other)
        )
    assert float((one - two).abs().max()) > 1e-3


def test_what_is_no_network_alone_cannot_be_exported(tmp_path: Path, folder_of_family):
    model = loaded(folder_of_family("mdlm"))
    stranger = copy.deepcopy(model.network)
    other = load_text_model(stranger)
    kernel = lora(chain_of(other), 1, targets=other.lora_targets)
    with pytest.raises(InputError, match="cannot be exported; a language model is a full copy"):
        export_text_model(model, kernel, tmp_path / "posterior")
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are no language model"):
        export_text_model(model, full_copy(chain_of(model)), tmp_path / "busy")
    assert not (tmp_path / "posterior").exists()


def test_a_network_of_ones_own_has_no_published_layout(tmp_path: Path):
    from difftilt.token_denoisers import TokenNetwork

    class Unigram(TokenNetwork):
        def __init__(self):
            super().__init__(5, 5)
            self.scores = nn.Parameter(torch.arange(5.0))

        def hidden(self, ids, time):
            return torch.zeros(*ids.shape, 1)

        def logits(self, hidden):
            return hidden + self.scores

    model = load_text_model(Unigram())
    assert model.lora_targets == "all" and model.banned == () and model.tokenizer is None
    with pytest.raises(InputError, match="a Unigram has no published layout"):
        export_text_model(model, full_copy(chain_of(model)), tmp_path / "posterior")
