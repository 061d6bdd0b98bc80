"""What carries a posterior, as flat fields of a recipe."""

from dataclasses import dataclass, replace
from typing import Literal

from difftilt.forms import (
    DriftNet,
    Form,
    FullCopy,
    LearnedGuidance,
    LoRA,
    Perceptron,
    ValueGuided,
)
from difftilt.guidance.reconstruction import DPS


@dataclass(frozen=True)
class FormChoice:
    """What carries the posterior.

    Arguments:
        kind: "auto" (a perceptron for small vectors, else a full copy), "full_copy", "lora",
            "drift" (an additive net of the prior's class), "perceptron", or "value_guided" (what
            CEP trains).
        rank: of LoRA adapters.
        targets: layers that get adapters: "attention" or "all".
        components: Gaussians per step of a perceptron's kernel.
        learned_variance: learn the variance too.
        learned_temperature: of tokens, on a copy or adapters: also learn how sure to be.
        width: of a perceptron.
        frequencies: Fourier features of a perceptron.
        linear: a perceptron's linear map of each step beside it.
        shrink: a drift net has the prior's channels divided by this.
        largest_beta: of a value that guides: it learns every β in (0, largest_beta]; None: one.
        guided: also move along the reward's gradient at clean predictions (DPS), by one learned
            strength per step; for rewards that have a gradient. It cannot be exported.
    """

    kind: Literal["auto", "full_copy", "lora", "drift", "perceptron", "value_guided"] = "auto"
    rank: int = 16
    targets: Literal["attention", "all"] = "attention"
    components: int = 4
    learned_variance: bool = True
    learned_temperature: bool = False
    width: int = 96
    frequencies: int = 8
    linear: bool = False
    shrink: int = 2
    largest_beta: float | None = None
    guided: bool = False

    def build(self) -> Form | None:
        """The form, or None for "auto"."""
        form = self._unguided()
        return LearnedGuidance(form, along=DPS()) if self.guided else form

    def _unguided(self) -> Form | None:
        if self.kind == "full_copy":
            return FullCopy(learned_temperature=self.learned_temperature)
        if self.kind == "lora":
            form = LoRA(self.rank, learned_temperature=self.learned_temperature)
            return replace(form, targets="all") if self.targets == "all" else form
        if self.kind == "drift":
            return DriftNet(self.shrink)
        if self.kind == "perceptron":
            return Perceptron(
                self.components,
                self.learned_variance,
                self.width,
                frequencies=self.frequencies,
                linear=self.linear,
            )
        if self.kind == "value_guided":
            return ValueGuided(
                largest_beta=self.largest_beta, width=self.width, frequencies=self.frequencies
            )
        return None
