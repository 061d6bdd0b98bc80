"""The recipes by name."""

from difftilt.recipes.base import Recipe
from difftilt.recipes.control import Control
from difftilt.recipes.custom import Custom
from difftilt.recipes.exact import Exact
from difftilt.recipes.fashion import Fashion
from difftilt.recipes.infill import Infill
from difftilt.recipes.rocstories import RocStories
from difftilt.recipes.stable_diffusion import StableDiffusion
from difftilt.recipes.text_to_image import HeldOutPrompts

RECIPES: dict[str, type[Recipe]] = {
    "fashion": Fashion,
    "infill": Infill,
    "rocstories": RocStories,
    "text_to_image": HeldOutPrompts,
    "sd": StableDiffusion,
    "control": Control,
    "custom": Custom,
    "exact": Exact,
}


def recipe_summaries() -> dict[str, str]:
    """One line for each recipe, from its docstring."""
    return {name: (kind.__doc__ or "").strip().splitlines()[0] for name, kind in RECIPES.items()}
