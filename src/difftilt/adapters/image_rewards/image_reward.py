"""ImageReward, a preference model of pictures, in a process of its own.

Its package pins versions of transformers and others that a present diffusers does not go with, so
it runs in another interpreter (``difftilt.isolated``): make an environment with ``pip install
image-reward``, put ``ImageReward.pt`` and ``med_config.json`` into a folder, and name both. That
interpreter also needs the tokenizer "bert-base-uncased" in its hub cache.

The score is standardised (mean 0, deviation 1 over its authors' pictures) and has no bound.

Source: Xu et al. 2023 (arXiv 2304.05977).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import final

from jaxtyping import Float
from torch import Tensor

from difftilt.adapters.image_rewards import image_reward_worker as worker
from difftilt.adapters.image_rewards.image_text import check_prompts, existing_folder
from difftilt.adapters.image_rewards.processing import checked_images
from difftilt.errors import InputError
from difftilt.rewards.isolation import IsolatedReward

FILES = ("ImageReward.pt", "med_config.json")


@final
class ImageRewardScore:
    """ImageReward's score of pictures and prompts; a context manager.

    Arguments:
        folder: holds ``ImageReward.pt`` and ``med_config.json``.
        python: the interpreter with the package ``image-reward``; default this one.
        scale: nats per point of the score.
        timeout: seconds for one batch.

    Raises:
        InputError: a file is missing, there is no such interpreter, or it lacks the package.
    """

    bound = None
    name = "imagereward"

    def __init__(
        self,
        folder: str | Path,
        *,
        python: str | Path | None = None,
        scale: float = 1.0,
        timeout: float = 600.0,
    ) -> None:
        path = existing_folder(folder).resolve()
        missing = [name for name in FILES if not (path / name).is_file()]
        if missing:
            raise InputError(
                f"{path} holds no {missing[0]}; put ImageReward.pt and med_config.json there"
            )
        self._isolated = IsolatedReward(
            f"{worker.__file__}:log_reward",
            python=python,
            timeout=timeout,
            options={"folder": str(path), "scale": scale},
        )

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str]
    ) -> Float[Tensor, " B"]:
        """log r of pictures in [0, 1] and their prompts, detached.

        Raises:
            InputError: the pictures are no such pictures, or there is not one prompt for each.
            RewardError: the scorer raised, or gave no answer.
        """
        check_prompts(images, prompts, self.name)
        return self._isolated(checked_images(images.detach()), list(prompts))

    def close(self) -> None:
        """End the process."""
        self._isolated.close()

    def __enter__(self) -> "ImageRewardScore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
