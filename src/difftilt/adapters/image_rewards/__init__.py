"""Rewards of pictures and their prompts.

Each is ``(images (B, 3, H, W) in [0, 1], prompts: list of B texts) -> log r (B,)``, in nats.
``image_text`` compares the two, ``aesthetic`` judges the picture alone, ``answers`` asks a
classifier or a question-answering network, ``image_reward`` runs one in another interpreter,
``compressibility`` counts bytes; ``names`` finds each by a name. Weighted sums, floors and
temperatures are those of ``difftilt.rewards.wrappers``.
"""

from difftilt.adapters.image_rewards.aesthetic import AestheticScore, aesthetic
from difftilt.adapters.image_rewards.answers import (
    AnswerScore,
    ImageClassifierScore,
    answers,
    image_classifier,
)
from difftilt.adapters.image_rewards.compressibility import JpegSize
from difftilt.adapters.image_rewards.image_reward import ImageRewardScore
from difftilt.adapters.image_rewards.image_text import (
    ImageTextScore,
    Towers,
    clip,
    hps,
    open_clip,
    pick_score,
)
from difftilt.adapters.image_rewards.names import Isolation, image_reward

__all__ = [
    "AestheticScore",
    "AnswerScore",
    "ImageClassifierScore",
    "ImageRewardScore",
    "ImageTextScore",
    "Isolation",
    "JpegSize",
    "Towers",
    "aesthetic",
    "answers",
    "clip",
    "hps",
    "image_classifier",
    "image_reward",
    "open_clip",
    "pick_score",
]
