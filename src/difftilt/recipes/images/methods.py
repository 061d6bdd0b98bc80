"""The methods of the vision table on the shipped image prior."""

from dataclasses import replace

from difftilt.forms import Form, ValueGuided
from difftilt.posteriors import Target
from difftilt.recipes.images.fashion import Fashion
from difftilt.recipes.tables.label_guidance import classifier_free, classifier_guided
from difftilt.recipes.tables.makers import Maker, Setting
from difftilt.recipes.tables.networks import network_methods, training_free_methods

SAMPLES = 1024
DEFAULTS = (
    "rtb",
    "reward_weighted",
    "ddpo",
    "ppo_kl",
    "dpok",
    "cep",
    "kl_control",
    "dps",
    "lgdmc",
    "tds",
    "svdd",
    "best_of_n",
    "importance",
)


def setting_of(target: Target, calls: int, seed: int) -> Setting:
    """What the vision table gives every method on a target."""
    plan = replace(Fashion().training, network_calls=calls, seed=seed)
    return Setting(target, Fashion().form.build(), plan, calls, SAMPLES)


def _value_guided(form: Form | None) -> ValueGuided:
    return ValueGuided()


def _label_methods() -> dict[str, Maker]:
    return {
        "classifier_guidance": classifier_guided(),
        "cfg": classifier_free(1.0),
        "cfg_2": classifier_free(2.0),
    }


def image_methods() -> dict[str, Maker]:
    """The vision table's methods by name."""
    return network_methods(_value_guided) | _label_methods() | training_free_methods()


def default_image_methods() -> list[str]:
    """Those that the bench runs if none is named: what the papers compare with."""
    return list(DEFAULTS)
