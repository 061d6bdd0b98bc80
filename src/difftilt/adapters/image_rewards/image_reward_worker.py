"""ImageReward in an interpreter of its own: started by path, with that package, torch and pillow.

``log_reward(folder)`` makes ``(images (B, 3, H, W) in [0, 1], prompts) -> scores (B,)``. Nothing of
difftilt is imported here.
"""

import importlib
import os


def log_reward(folder: str, scale: float = 1.0):
    """The reward of a folder that holds ImageReward.pt and med_config.json."""
    package = importlib.import_module("ImageReward")
    weights, settings = (os.path.join(folder, n) for n in ("ImageReward.pt", "med_config.json"))
    for path in (weights, settings):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no {path}")
    model = package.load(weights, med_config=settings)

    def score(images, prompts):
        pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        pairs = zip(pixels, prompts, strict=True)
        return [scale * _one(model, prompt, each) for each, prompt in pairs]

    return score


def _one(model, prompt, pixels) -> float:
    from PIL import Image

    return float(model.score(prompt, Image.fromarray(pixels)))
