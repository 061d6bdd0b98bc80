"""Rewards of pictures by name, as a command line gives them.

| name | reward |
|---|---|
| ``clip:FOLDER`` ``open_clip:FOLDER`` | 100 × cosine of picture and prompt |
| ``pickscore:FOLDER`` ``hps:FOLDER`` | networks trained on preferences |
| ``aesthetic:FOLDER:HEAD`` | a head's file on a CLIP's image features |
| ``imagereward:FOLDER`` | ImageReward, in an interpreter of its own |
| ``jpeg`` ``incompressible`` | minus (plus) the kilobytes of the JPEG |
| ``classifier:FOLDER:CLASS`` | log-probability of a class |
| ``vqa:FOLDER:[ANSWER]:[QUESTION]`` | log-probability of an answer about the prompt |
| ``module:function`` ``file.py:function`` | your own, of (images, prompts) |

What stands in brackets may be left out, or be empty: ``vqa:models/vilt::Is this {prompt}?``.
``0.5*NAME`` has a weight; several are summed: ``--reward clip:models/clip 0.1*jpeg``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from difftilt.adapters.image_rewards.aesthetic import aesthetic
from difftilt.adapters.image_rewards.answers import QUESTION, answers, image_classifier
from difftilt.adapters.image_rewards.compressibility import JpegSize
from difftilt.adapters.image_rewards.image_reward import ImageRewardScore
from difftilt.adapters.image_rewards.image_text import clip, hps, open_clip, pick_score
from difftilt.errors import InputError
from difftilt.rewards.isolation import isolated
from difftilt.rewards.loading import load_reward, reward_digest
from difftilt.rewards.wrappers import Summed


@dataclass(frozen=True)
class Isolation:
    """Where rewards run that have an interpreter of their own.

    Arguments:
        own: run "module:function" rewards in another process too.
        python: its interpreter; None for this one.
        timeout: seconds for one batch.
    """

    own: bool = False
    python: str | None = None
    timeout: float = 600.0


def image_reward(
    names: str | Sequence[str], isolation: Isolation | None = None
) -> Callable[..., Any]:
    """The reward, or the sum of rewards, that names say; of (images (B, 3, H, W), prompts).

    Arguments:
        names: one, or several that are summed.
        isolation: where ImageReward, and the user's own if so wanted, runs.

    Raises:
        InputError: no name, an unknown one, or what it names cannot be loaded.
        MissingPackage: a package that it needs is not installed.
    """
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise InputError(f"no reward is named; {_known()}")
    where = Isolation() if isolation is None else isolation
    weighted = [_weighted(name) for name in listed]
    rewards = [_named(name, where) for _, name in weighted]
    weights = [weight for weight, _ in weighted]
    return rewards[0] if weights == [1.0] else Summed(rewards, weights)


def reward_digests(names: Sequence[str]) -> str | None:
    """SHA-256 of the user's own files among the rewards, joined by commas; None for none."""
    own = [name for _, name in map(_weighted, names) if name.partition(":")[0] not in KINDS]
    return ",".join(filter(None, map(reward_digest, own))) or None


def _weighted(name: str) -> tuple[float, str]:
    """``"0.5*jpeg"`` as (0.5, "jpeg"); a name without weight has 1."""
    weight, star, rest = name.partition("*")
    try:
        # A star behind a colon belongs to a question or a path.
        is_weighted = star and ":" not in weight
        return (float(weight), rest.strip()) if is_weighted else (1.0, name.strip())
    except ValueError:
        raise InputError(
            f"{weight!r} of the reward {name!r} is no number; write WEIGHT*NAME"
        ) from None


def _named(name: str, isolation: Isolation) -> Callable[..., Any]:
    kind, _, rest = name.partition(":")
    if kind not in KINDS:
        if ":" not in name:
            raise InputError(f"there is no reward {name!r}; {_known()}")
        if isolation.own:
            return isolated(name, python=isolation.python, timeout=isolation.timeout)
        return load_reward(name)
    wanted, make = KINDS[kind]
    parts = rest.split(":", max(0, len(wanted) - 1)) if rest else []
    least = sum(not each.startswith("[") for each in wanted)
    if not least <= len(parts) <= len(wanted) or not all(parts[:least]):
        raise InputError(f"the reward {name!r} is written {':'.join([kind, *wanted])}")
    return make(isolation, *parts)


def _known() -> str:
    shapes = [":".join([kind, *wanted]) for kind, (wanted, _) in KINDS.items()]
    return f"write {', '.join(shapes)}, module:function or file.py:function"


KINDS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "clip": (("FOLDER",), lambda _, folder: clip(folder)),
    "open_clip": (("FOLDER",), lambda _, folder: open_clip(folder)),
    "pickscore": (("FOLDER",), lambda _, folder: pick_score(folder)),
    "hps": (("FOLDER",), lambda _, folder: hps(folder)),
    "aesthetic": (("FOLDER", "HEAD"), lambda _, folder, head: aesthetic(folder, head)),
    "imagereward": (
        ("FOLDER",),
        lambda w, folder: ImageRewardScore(folder, python=w.python, timeout=w.timeout),
    ),
    "jpeg": ((), lambda _: JpegSize()),
    "incompressible": ((), lambda _: JpegSize(-1.0)),
    "classifier": (("FOLDER", "CLASS"), lambda _, folder, label: image_classifier(folder, label)),
    "vqa": (
        ("FOLDER", "[ANSWER]", "[QUESTION]"),
        lambda _, folder, answer="", question="": answers(
            folder, question or QUESTION, answer or "yes"
        ),
    ),
}
