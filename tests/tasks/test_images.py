"""The shipped garments: the prior's folder, the classifiers and the styles.

Statistical tests have fixed seeds; their bounds lie at least 5 standard errors from the expected
value, a false-alarm rate below 6e-7 each under a new seed.
"""

import json

import numpy as np
import pytest
import torch

from difftilt.diagnostics.features import frechet_distance
from difftilt.errors import CheckpointError, InputError
from difftilt.tasks import images as garments

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def prior_samples() -> torch.Tensor:
    """96 images by 20 strided steps of the shipped folder, as diffusers itself draws them."""
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.DDPMPipeline.from_pretrained(garments.fashion_prior_folder())
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        batch_size=96,
        num_inference_steps=20,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    return torch.from_numpy(np.asarray(drawn)).permute(0, 3, 1, 2).float() * 2 - 1


class TestPriorFolder:
    def test_is_an_ordinary_pipeline_in_safetensors(self):
        folder = garments.fashion_prior_folder()
        index = json.loads((folder / "model_index.json").read_text())
        assert index["_class_name"] == "DDPMPipeline"
        assert (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
        assert (folder / "scheduler" / "scheduler_config.json").exists()

    def test_shipped_files_are_small_and_hold_no_pickle(self):
        folder = garments.fashion_prior_folder().parent
        paths = [p for part in folder.glob("fashion*") for p in (part, *part.rglob("*"))]
        paths = [p for p in paths if p.is_file()]
        assert {p.suffix for p in paths} <= {".json", ".safetensors"}
        assert sum(p.stat().st_size for p in paths) <= 10 * MEBIBYTE
        classifiers = [p for p in paths if p.parent.name == "data"]
        assert len(classifiers) == 2
        assert all(p.stat().st_size < MEBIBYTE for p in classifiers)

    def test_samples_are_images_of_many_classes(self, prior_samples):
        assert prior_samples.shape == (96, 1, 28, 28)
        probabilities = garments.load_classifier("heldout")(prior_samples).softmax(1)
        counts = probabilities.argmax(1).bincount(minlength=10)
        assert (counts > 0).sum() >= 7
        assert counts.max() <= 48

    def test_classifiers_are_confident_and_agree_on_samples(self, prior_samples):
        opinions = [
            garments.load_classifier(name)(prior_samples).softmax(1)
            for name in ("reward", "heldout")
        ]
        for probabilities in opinions:
            assert probabilities.max(1).values.mean() > 0.6
        agreement = (opinions[0].argmax(1) == opinions[1].argmax(1)).float().mean()
        assert agreement > 0.55

    def test_samples_are_more_garment_than_noise(self, prior_samples):
        classifier = garments.load_classifier("heldout")
        noise = torch.randn(prior_samples.shape, generator=torch.Generator().manual_seed(1)).clamp(
            -1, 1
        )
        halves = garments.features(classifier, prior_samples).chunk(2)
        of_noise = garments.features(classifier, noise[:48])
        floor = frechet_distance(*halves)
        assert frechet_distance(halves[0], of_noise) > 3 * floor


class TestClassifiers:
    def test_are_frozen_deterministic_and_two(self):
        x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
        logits = {name: garments.load_classifier(name)(x) for name in ("reward", "heldout")}
        assert logits["reward"].shape == logits["heldout"].shape == (3, 10)
        assert not torch.allclose(logits["reward"], logits["heldout"], atol=0.1)
        assert torch.equal(logits["reward"], garments.load_classifier("reward")(x))
        model = garments.load_classifier("reward")
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())

    def test_gradient_reaches_the_image(self):
        x = torch.zeros(1, 1, 28, 28, requires_grad=True)
        garments.load_classifier("reward")(x)[0, 0].backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0

    def test_temperature_divides_the_logits(self):
        x = torch.zeros(1, 1, 28, 28)
        model = garments.load_classifier("reward")
        before, temperature = model(x), model.temperature.clone()
        model.temperature.fill_(1.0)
        torch.testing.assert_close(model(x), before * temperature)

    @pytest.mark.usefixtures("unchecked")
    def test_unknown_name_lists_the_known_ones(self):
        with pytest.raises(InputError, match=r"reward.*heldout"):
            garments.load_classifier("judge")  # type: ignore[arg-type]

    def test_half_written_weights_are_named(self, tmp_path, monkeypatch):
        whole = (garments.fashion_prior_folder().parent / "fashion_reward.safetensors").read_bytes()
        (tmp_path / "fashion_reward.safetensors").write_bytes(whole[: len(whole) // 2])
        monkeypatch.setattr(garments, "shipped_data", lambda: tmp_path)
        with pytest.raises(CheckpointError, match=r"fashion_reward.*train_image_models"):
            garments.load_classifier("reward")
        with pytest.raises(CheckpointError, match=r"fashion_heldout"):
            garments.load_classifier("heldout")

    def test_ten_class_names(self):
        assert len(set(garments.FASHION_CLASSES)) == 10


class TestFeatures:
    def test_chunks_do_not_matter(self):
        classifier = garments.load_classifier("heldout")
        x = torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
        whole = garments.features(classifier, x)
        torch.testing.assert_close(garments.features(classifier, x, chunk=3), whole)
        torch.testing.assert_close(classifier.head(whole) / classifier.temperature, classifier(x))

    @pytest.mark.usefixtures("unchecked")
    def test_wrong_shape_is_named(self):
        with pytest.raises(InputError, match=r"\(2, 3, 28, 28\)"):
            garments.features(garments.load_classifier("heldout"), torch.zeros(2, 3, 28, 28))


class TestStyles:
    def test_their_statistics_are_those_of_hand_made_images(self):
        images = torch.full((3, 1, 28, 28), -1.0)
        images[1, :, :14] = 1.0
        images[2, :, :, :7] = 3.0  # beyond white is white
        assert garments.style_of(images, "ink").tolist() == [0.0, 0.5, 0.25]
        assert garments.style_of(images, "contrast").tolist() == [0.0, 1.0, 0.0]

    def test_a_reward_is_a_gaussian_of_the_statistic_with_a_gradient(self):
        images = torch.zeros(2, 1, 28, 28, requires_grad=True)
        log_r = garments.StyleReward("ink", 0.3, 0.1)(images)
        assert log_r.tolist() == pytest.approx([-2.0, -2.0], abs=1e-5)
        (slope,) = torch.autograd.grad(log_r.sum(), images)
        assert float(slope.sum((1, 2, 3))[0]) == pytest.approx(-(0.2 / 0.01) / 2, rel=1e-4)

    def test_bad_options_are_named(self, unchecked):
        with pytest.raises(InputError, match="no style is called 'hue'; choose one of ink"):
            garments.StyleReward("hue", 0.5, 0.1)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="width of a style is a number above 0, got 0"):
            garments.StyleReward("ink", 0.5, 0)
