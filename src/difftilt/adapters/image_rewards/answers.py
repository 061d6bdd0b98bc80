"""What a classifier or a question-answering network says of a picture, as log-probabilities.

| reward | log r |
|---|---|
| ``ImageClassifierScore`` | ``log Σ_{k in classes} p(k | x)`` |
| ``AnswerScore`` | ``log p(answer | x, question)``, the question made of the prompt |

Networks are those of transformers, read from folders; any other is a callable of (images, prompts).
Both are at most 0 and keep the graph.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from difftilt.adapters.image_rewards.image_text import check_prompts, from_folder
from difftilt.adapters.image_rewards.processing import Processing, processing_of
from difftilt.errors import InputError, require

QUESTION = "Does this picture show {prompt}?"


@final
class ImageClassifierScore:
    """The log-probability of a class, or of any of several; the prompt is not read.

    Arguments:
        network: of transformers, called as ``network(pixel_values=...)`` for its ``logits``.
        processing: of pictures.
        classes: names or numbers of the wanted ones.

    Raises:
        InputError: the network has no such class.
    """

    bound = 0.0
    name = "classifier"

    def __init__(
        self, network: Any, processing: Processing, classes: Sequence[int | str] | int | str
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.processing = processing
        wanted = [classes] if isinstance(classes, int | str) else list(classes)
        self.classes = sorted({_label(each, network.config.id2label) for each in wanted})

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str] | None = None
    ) -> Float[Tensor, " B"]:
        """log r of pictures in [0, 1], in nats.

        Raises:
            InputError: the pictures are no such pictures.
        """
        weight = next(self.network.parameters())
        pixels = self.processing(images.to(weight.device)).to(weight.dtype)
        log_p = self.network(pixel_values=pixels).logits.float().log_softmax(1)
        # The clamp takes off what rounding adds when all classes are wanted.
        return log_p[:, self.classes].logsumexp(1).clamp(max=0.0).to(images.device)


@final
class AnswerScore:
    """The log-probability of an answer to a question about the picture.

    Arguments:
        network: of transformers, a classifier of answers (such as ViLT) called with ``input_ids``,
            ``attention_mask`` and ``pixel_values`` for its ``logits``.
        tokenizer: its tokenizer.
        processing: of pictures.
        question: with ``{prompt}`` where the prompt goes.
        answer: one of the network's answers, by name or number.

    Raises:
        InputError: the question has no place for the prompt, or there is no such answer.
    """

    bound = 0.0
    name = "answer"

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        processing: Processing,
        question: str = QUESTION,
        answer: str | int = "yes",
    ) -> None:
        if "{prompt}" not in question:
            raise InputError(f"the question {question!r} has no {{prompt}}; put it where it goes")
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.processing = processing
        self.question = question
        self.answer = _label(answer, network.config.id2label)

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str]
    ) -> Float[Tensor, " B"]:
        """log r of pictures in [0, 1] and their prompts, in nats.

        Raises:
            InputError: the pictures are no such pictures, or there is not one prompt for each.
        """
        check_prompts(images, prompts, self.name)
        weight = next(self.network.parameters())
        pixels = self.processing(images.to(weight.device)).to(weight.dtype)
        questions = [self.question.format(prompt=prompt.rstrip(" .")) for prompt in prompts]
        words = self.tokenizer(questions, padding=True, truncation=True, return_tensors="pt")
        given = {name: words[name].to(weight.device) for name in ("input_ids", "attention_mask")}
        logits = self.network(**given, pixel_values=pixels).logits.float()
        return logits.log_softmax(1)[:, self.answer].to(images.device)


def image_classifier(
    folder: str | Path, classes: Sequence[int | str] | int | str
) -> ImageClassifierScore:
    """An image classifier of transformers, from a folder.

    Raises:
        InputError: no such folder or class.
        MissingPackage: transformers is not installed.
    """
    require("transformers", "diffusers")
    from transformers import AutoModelForImageClassification

    network = from_folder(AutoModelForImageClassification, folder)
    return ImageClassifierScore(network, processing_of(folder), classes)


def answers(
    folder: str | Path,
    question: str = QUESTION,
    answer: str | int = "yes",
) -> AnswerScore:
    """A question-answering network of transformers, from a folder.

    Raises:
        InputError: no such folder or answer.
        MissingPackage: transformers is not installed.
    """
    require("transformers", "diffusers")
    from transformers import AutoModelForVisualQuestionAnswering, AutoTokenizer

    network = from_folder(AutoModelForVisualQuestionAnswering, folder)
    tokenizer = from_folder(AutoTokenizer, folder)
    return AnswerScore(network, tokenizer, processing_of(folder), question, answer)


def _label(wanted: int | str, names: dict[int, str]) -> int:
    """The number of a label."""
    if isinstance(wanted, str) and wanted in names.values():
        return next(number for number, name in names.items() if name == wanted)
    number = int(wanted) if str(wanted).isdigit() else -1
    if number not in names:
        some = ", ".join(list(names.values())[:5])
        raise InputError(
            f"there is no label {wanted!r}: the network has {len(names)}, such as {some}"
        )
    return number
