"""Rewards of pictures against the libraries' own pipelines, on tiny random networks."""

import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny_image_text as tiny
from difftilt.adapters import image_rewards as ir
from difftilt.adapters.image_rewards.aesthetic import AestheticScore, head_of
from difftilt.adapters.image_rewards.names import KINDS
from difftilt.adapters.image_rewards.processing import processing_of
from difftilt.cli import main
from difftilt.errors import InputError, MissingPackage, RewardError
from difftilt.rewards.contract import as_reward
from difftilt.rewards.wrappers import Summed
from readme import GUIDES, command_lines

X = tiny.pictures()
PROMPTS = ["green rabbit", "a red car", "green rabbit", "a photo of a car", "this picture"]


def as_pil(images: torch.Tensor) -> list[Image.Image]:
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in pixels]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    return {
        "clip": tiny.clip_folder(root / "clip"),
        "siglip": tiny.clip_folder(root / "siglip", "siglip"),
        "classifier": tiny.classifier_folder(root / "classifier"),
        "vqa": tiny.answering_folder(root / "vqa"),
    }


@pytest.fixture(scope="module")
def clip(folders) -> ir.ImageTextScore:
    return ir.clip(folders["clip"])


@pytest.mark.parametrize("kind", ["clip", "siglip", "classifier"])
@pytest.mark.parametrize(("height", "width"), [(40, 52), (52, 40), (20, 20), (32, 32)])
def test_processing_is_that_of_the_processor(folders, kind: str, height: int, width: int):
    from transformers import AutoImageProcessor

    images = tiny.pictures(3, height, width)
    theirs = AutoImageProcessor.from_pretrained(folders[kind])
    wanted = theirs(as_pil(images), return_tensors="pt")["pixel_values"]
    ours = processing_of(folders[kind])(images)
    assert ours.shape == wanted.shape
    # They round to 1/255 once or twice (pillow resizes in two passes).
    step = 1 / 255 / min(theirs.image_std)
    assert (ours - wanted).abs().max() < 1.6 * step
    assert (ours - wanted).abs().mean() < 0.5 * step


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_score_is_the_network_s_own_cosine(folders, kind: str):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    network = AutoModel.from_pretrained(folders[kind]).eval()
    words = AutoTokenizer.from_pretrained(folders[kind])(
        PROMPTS, padding="max_length", max_length=16, return_tensors="pt"
    )
    pixels = AutoImageProcessor.from_pretrained(folders[kind])(as_pil(X), return_tensors="pt")
    with torch.no_grad():
        out = network(input_ids=words["input_ids"], pixel_values=pixels["pixel_values"])
    wanted = (out.image_embeds * out.text_embeds).sum(1)
    ours = ir.clip(folders[kind], scale=1.0)(X, PROMPTS)
    assert torch.allclose(ours, wanted, atol=4e-3)
    assert wanted.std() > 0.02  # the tolerance tells the pictures apart


def test_pick_score_has_the_network_s_scale(folders, clip):
    own = ir.pick_score(folders["clip"])
    assert own.scale == pytest.approx(np.exp(2.6592), rel=1e-4)
    assert torch.allclose(own(X, PROMPTS) / own.scale, clip(X, PROMPTS) / 100, atol=1e-6)
    assert own.bound == own.scale and ir.hps(folders["clip"]).name == "hps"


def test_a_score_does_not_depend_on_the_batch_and_reads_a_prompt_once(folders):
    score = ir.clip(folders["clip"], batch=2)
    read = []
    inner = score.towers.read
    object.__setattr__(score.towers, "read", lambda p: read.extend(p) or inner(p))
    whole = score(X, PROMPTS)
    assert torch.allclose(score(X[3:4], PROMPTS[3:4])[0], whole[3], atol=1e-4)
    assert sorted(read) == sorted(set(PROMPTS))


def test_the_slope_of_the_score_is_that_of_differences(clip):
    x = X[:1].double().clone()
    direction = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)).double() - 0.5
    x = 0.2 + 0.6 * x
    leaf = x.clone().requires_grad_()
    clip(leaf, PROMPTS[:1]).sum().backward()
    slope = float((leaf.grad * direction).sum())
    h = 3e-3
    ahead, behind = (float(clip(x + s * h * direction, PROMPTS[:1])) for s in (1, -1))
    assert slope == pytest.approx((ahead - behind) / (2 * h), rel=0.05)


def test_the_improved_head_s_published_layout(folders, clip, tmp_path):
    # Linear maps with dropout between and no activations, under the published names.
    inner = nn.Sequential(
        nn.Linear(12, 8), nn.Dropout(0.2), nn.Linear(8, 4), nn.Dropout(0.1), nn.Linear(4, 1)
    )
    weights = {f"layers.{name}": value for name, value in inner.state_dict().items()}
    torch.save(weights, tmp_path / "head.pth")
    wanted = inner.eval()(clip.features(X))[:, 0]
    ours = ir.aesthetic(folders["clip"], tmp_path / "head.pth", scale=2.0)
    assert torch.allclose(ours(X), 2 * wanted, atol=1e-5)
    assert torch.allclose(ours(X, PROMPTS), ours(X))


def test_the_linear_head_s_published_layout(clip):
    linear = nn.Linear(12, 1)
    score = AestheticScore(clip, head_of(linear.state_dict()))
    assert torch.allclose(score(X), linear(clip.features(X))[:, 0], atol=1e-6)


def test_a_head_of_ten_layers_keeps_its_order():
    maps = [nn.Linear(3, 3) for _ in range(11)] + [nn.Linear(3, 1)]
    weights = {
        f"layers.{2 * i}.{k}": v for i, m in enumerate(maps) for k, v in m.state_dict().items()
    }
    x = torch.randn(4, 3)
    assert torch.allclose(head_of(dict(sorted(weights.items())))(x), nn.Sequential(*maps)(x))


def test_jpeg_counts_the_bytes_of_the_file():
    sizes = []
    for image in as_pil(X):
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=95)
        sizes.append(len(file.getvalue()) / 1000)
    assert torch.allclose(ir.JpegSize()(X), -torch.tensor(sizes))
    assert torch.allclose(ir.JpegSize(-2.0)(X, PROMPTS), 2 * torch.tensor(sizes))
    flat = torch.full((1, 3, 40, 52), 0.5)
    assert ir.JpegSize()(flat) > ir.JpegSize()(X).max()


def test_a_classifier_s_log_probability(folders):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(folders["classifier"]).eval()
    pixels = AutoImageProcessor.from_pretrained(folders["classifier"])(
        as_pil(X), return_tensors="pt"
    )
    with torch.no_grad():
        log_p = network(**pixels).logits.log_softmax(1)
    assert torch.allclose(
        ir.image_classifier(folders["classifier"], "dog")(X), log_p[:, 1], atol=5e-3
    )
    both = ir.image_classifier(folders["classifier"], ["cat", 2])(X)
    assert torch.allclose(both.exp(), 1 - log_p[:, 1].exp(), atol=5e-3)
    every = ir.image_classifier(folders["classifier"], [0, 1, 2])(X)
    assert torch.allclose(every, torch.zeros(5), atol=1e-6)


def test_an_answer_s_log_probability(folders):
    from transformers import AutoModelForVisualQuestionAnswering, AutoTokenizer

    score = ir.answers(folders["vqa"])
    network = AutoModelForVisualQuestionAnswering.from_pretrained(folders["vqa"]).eval()
    words = AutoTokenizer.from_pretrained(folders["vqa"])(
        "Does this picture show green rabbit?", return_tensors="pt"
    )
    pixels = processing_of(folders["vqa"])(X[:1])
    with torch.no_grad():
        log_p = network(**words, pixel_values=pixels).logits.log_softmax(1)[0]
    assert score(X, PROMPTS)[0].item() == pytest.approx(log_p[1].item(), abs=1e-5)
    every = [ir.answers(folders["vqa"], answer=a)(X, PROMPTS).exp() for a in ("no", "yes", 2)]
    assert torch.allclose(torch.stack(every).sum(0), torch.ones(5), atol=1e-5)


@pytest.fixture
def image_reward_folder(tmp_path, monkeypatch) -> Path:
    """A folder, and a package with ImageReward's interface on the path of other interpreters."""
    monkeypatch.setenv("PYTHONPATH", str(tiny.image_reward_package(tmp_path / "packages")))
    return tiny.image_reward_folder(tmp_path / "image-reward")


def test_image_reward_sees_pictures_and_prompts_in_its_own_process(image_reward_folder):
    flat = torch.zeros(2, 3, 8, 8)
    flat[0, 1] = 1.0
    with ir.ImageRewardScore(image_reward_folder, python=sys.executable, scale=2.0) as score:
        log_r = score(flat, ["rabbit", "a red car"])
    assert log_r.tolist() == pytest.approx([2 * (0.5 + 1 + 6), 2 * (0.5 + 0 + 9)])


def test_image_reward_without_its_files_or_package(image_reward_folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(InputError, match=r"cannot be made: .*No module named 'ImageReward'"):
        ir.ImageRewardScore(image_reward_folder)
    (image_reward_folder / "med_config.json").unlink()
    with pytest.raises(InputError, match=r"holds no med_config\.json; put"):
        ir.ImageRewardScore(image_reward_folder)


def test_names_and_their_weighted_sum(folders, clip, tmp_path):
    torch.save(nn.Linear(12, 1).state_dict(), tmp_path / "head.pth")
    aesthetic = f"aesthetic:{folders['clip']}:{tmp_path / 'head.pth'}"
    one = ir.image_reward(f"clip:{folders['clip']}")
    assert torch.equal(one(X, PROMPTS), clip(X, PROMPTS))
    names = [f"0.5*clip:{folders['clip']}", "2*jpeg", aesthetic, f"vqa:{folders['vqa']}:no"]
    parts = [
        0.5 * clip(X, PROMPTS),
        2 * ir.JpegSize()(X),
        ir.aesthetic(folders["clip"], tmp_path / "head.pth")(X),
        ir.answers(folders["vqa"], answer="no")(X, PROMPTS),
    ]
    total = ir.image_reward(names)
    assert isinstance(total, Summed)
    assert torch.allclose(total(X, PROMPTS), sum(parts), atol=1e-4)
    assert ir.image_reward([f"clip:{folders['clip']}", "jpeg"]).bound == 100.0
    assert ir.image_reward(f"classifier:{folders['classifier']}:dog").classes == [1]
    assert ir.image_reward("incompressible").scale == -1.0


RUNNER = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
SHOWN = [
    words for page in GUIDES if page.stem == "rewards-for-pictures" for words in command_lines(page)
]


@pytest.fixture
def shown_folders(folders, image_reward_folder, tmp_path, monkeypatch) -> Path:
    """What the guide's lines name, under the names that they use."""
    (tmp_path / "models").mkdir()
    for name, kind in {"vilt": "vqa", "vit": "classifier", "siglip": "siglip"}.items():
        (tmp_path / "models" / name).symlink_to(folders[kind])
    for name in ("clip", "clip-l14", "pickscore", "hps"):
        (tmp_path / "models" / name).symlink_to(folders["clip"])
    (tmp_path / "models" / "image-reward").symlink_to(image_reward_folder)
    torch.save(nn.Linear(12, 1).state_dict(), tmp_path / "models" / "aesthetic-head.pth")
    (tmp_path / "reward.py").write_text(OWN)
    for name in ("image-reward", "mine"):
        python = tmp_path / "envs" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(RUNNER)
        python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_every_line_of_the_guide_scores_pictures(words, shown_folders, capsys, request):
    main([*words, "--dry-run"])
    config = json.loads(capsys.readouterr().out)["config"]
    if config["reward"] == ["open_clip:models/open-clip"]:
        request.getfixturevalue("open_clip")
        tiny.open_clip_folder(shown_folders / "models" / "open-clip")
    isolation = ir.Isolation(config["isolate"], config["python"] or None, config["timeout"])
    log_r = ir.image_reward(config["reward"], isolation)(X[:2], PROMPTS[:2])
    log_r = torch.as_tensor(log_r)
    assert log_r.shape == (2,) and bool(torch.isfinite(log_r).all())


def test_the_guide_shows_every_name():
    names = {name.split("*")[-1].split(":")[0] for words in SHOWN for name in words[3:]}
    assert set(KINDS) | {"reward.py"} <= names


OWN = "def log_reward(images, prompts):\n    return [float(len(p)) for p in prompts]\n"


def test_a_function_of_the_user_s_own_here_and_in_another_process(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    here = as_reward(ir.image_reward("own.py:log_reward"))
    there = ir.image_reward(["own.py:log_reward", "jpeg"], ir.Isolation(own=True))
    lengths = torch.tensor([float(len(p)) for p in PROMPTS])
    assert torch.allclose(here(X, PROMPTS).float(), lengths)
    assert torch.allclose(there(X, PROMPTS).float(), lengths + ir.JpegSize()(X), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("clip:/no/such/folder", "there is no folder /no/such/folder"),
        ("clip", r"the reward 'clip' is written clip:FOLDER"),
        ("jpeg:95", r"the reward 'jpeg:95' is written jpeg"),
        ("beauty", r"there is no reward 'beauty'; write clip:FOLDER"),
        ("much*jpeg", "'much' of the reward 'much\\*jpeg' is no number"),
        ([], "no reward is named"),
    ],
)
def test_names_that_name_nothing(name, sentence: str):
    with pytest.raises(InputError, match=sentence):
        ir.image_reward(name)


def test_folders_that_are_not_what_they_should_be(folders, tmp_path):
    with pytest.raises(InputError, match="has not both an image and a text tower"):
        ir.clip(folders["classifier"])
    with pytest.raises(InputError, match=r"AutoModel cannot be read from .*; save the whole"):
        ir.clip(tmp_path)
    with pytest.raises(InputError, match="there is no label 'horse': the network has 3, such as"):
        ir.image_classifier(folders["classifier"], "horse")
    with pytest.raises(InputError, match=r"has no \{prompt\}"):
        ir.answers(folders["vqa"], question="What is it?")
    with pytest.raises(InputError, match="there is no file"):
        ir.aesthetic(folders["clip"], tmp_path / "head.pth")
    with pytest.raises(InputError, match="head reads 7 features, but the image tower gives 12"):
        AestheticScore(ir.clip(folders["clip"]), nn.Linear(7, 1))
    with pytest.raises(InputError, match="maps follow one another"):
        head_of({"0.weight": torch.zeros(4, 12), "1.weight": torch.zeros(1, 3)})
    (tmp_path / "processor").mkdir()
    with pytest.raises(InputError, match="holds no settings of an image processor"):
        processing_of(tmp_path / "processor")


def test_pictures_and_prompts_that_do_not_fit(clip, unchecked):
    with pytest.raises(InputError, match=r"shape \(5, 1, 40, 52\); give \(B, 3, height, width\)"):
        clip.towers.processing(X[:, :1])
    with pytest.raises(InputError, match="give floats"):
        clip.towers.processing((X * 255).byte())
    with pytest.raises(InputError, match=r"from -1 to 1; give them in \[0, 1\]"):
        clip((X * 2 - 1) / (X * 2 - 1).abs().max(), PROMPTS)
    with pytest.raises(InputError, match="5 pictures and 2 prompts"):
        clip(X, PROMPTS[:2])
    with pytest.raises(RewardError, match="needs a condition"):
        as_reward(clip)(X)
    with pytest.raises(InputError, match="scale=0"):
        ir.ImageTextScore(clip.towers, 0.0)


@pytest.fixture(scope="module")
def open_clip():
    """The package; with a torchvision of another torch it is as good as missing."""
    try:
        return importlib.import_module("open_clip")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"open_clip cannot be imported: {error}")


@pytest.mark.parametrize("checkpoint", ["", "HPS_v2.1_compressed.pt"])
def test_a_folder_of_open_clip(open_clip, tmp_path, caplog, checkpoint: str):
    """As open_clip saves one, or as HPS publishes its weights; against open_clip's own call."""
    whole = tiny.open_clip_folder(tmp_path / "whole")
    folder = tiny.open_clip_folder(tmp_path / "folder", checkpoint)
    network, _, process = open_clip.create_model_and_transforms(f"local-dir:{whole}")
    pixels = torch.stack([process(image) for image in as_pil(X)])
    words = open_clip.get_tokenizer(f"local-dir:{whole}")(PROMPTS)
    with torch.no_grad():
        see, read = (nn.functional.normalize(f, dim=1) for f in network.eval()(pixels, words)[:2])
    wanted = (see * read).sum(1)
    caplog.clear()
    for score in (ir.open_clip(folder), ir.hps(folder), ir.image_reward(f"hps:{folder}")):
        assert torch.allclose(score(X, PROMPTS) / 100, wanted, atol=1e-2)
    assert wanted.std() > 0.1  # the tolerance tells the pictures apart
    assert not [each for each in caplog.records if "random" in each.getMessage()]
    leaf = X[:1].clone().requires_grad_()
    score(leaf, PROMPTS[:1]).sum().backward()
    assert leaf.grad is not None and bool((leaf.grad != 0).any())


def test_a_folder_of_open_clip_without_weights(open_clip, tmp_path):
    folder = tiny.open_clip_folder(tmp_path, "a.pt")
    (folder / "b.pt").write_bytes((folder / "a.pt").read_bytes())
    with pytest.raises(InputError, match=r"not one \.pt file \(a\.pt, b\.pt\); put"):
        ir.hps(folder)
    for name in ("a.pt", "b.pt"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"no weights that open_clip finds.* \(none\)"):
        ir.open_clip(folder)


def test_a_question_of_the_user_s_own(folders):
    vqa, question = folders["vqa"], "show this: a {prompt} * picture"
    named = ir.image_reward(f"vqa:{vqa}:no:{question}")
    assert (named.question, named.answer) == (question, 0)
    wanted = ir.answers(vqa, question, "no")(X, PROMPTS)
    assert torch.equal(named(X, PROMPTS), wanted)
    assert not torch.equal(wanted, ir.answers(vqa, answer="no")(X, PROMPTS))
    yes = ir.image_reward([f"2*vqa:{vqa}::{question}"])
    assert torch.allclose(yes(X, PROMPTS), 2 * ir.answers(vqa, question)(X, PROMPTS))
    with pytest.raises(InputError, match=r"the question 'how many\?' has no \{prompt\}"):
        ir.image_reward(f"vqa:{vqa}:2:how many?")
    with pytest.raises(InputError, match=r"is written vqa:FOLDER:\[ANSWER\]:\[QUESTION\]"):
        ir.image_reward("vqa::yes")


def test_open_clip_is_named_where_it_is_missing(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingPackage, match=r"pip install 'difftilt\[open_clip\]'"):
        ir.open_clip(folders["clip"])
