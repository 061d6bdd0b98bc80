"""The recipes by name."""

from difftilt.recipes.base import Recipe
from difftilt.recipes.control.recipe import Control
from difftilt.recipes.custom import Custom
from difftilt.recipes.exact.recipe import Exact
from difftilt.recipes.images.fashion import Fashion
from difftilt.recipes.molecules.recipe import Molecules
from difftilt.recipes.sequences.recipe import Sequences
from difftilt.recipes.shapes.recipe import Shapes
from difftilt.recipes.text.infill import Infill
from difftilt.recipes.text.rocstories import RocStories
from difftilt.recipes.text_to_image.recipe import HeldOutPrompts
from difftilt.recipes.text_to_image.stable_diffusion import StableDiffusion

RECIPES: dict[str, type[Recipe]] = {
    "fashion": Fashion,
    "shapes": Shapes,
    "infill": Infill,
    "rocstories": RocStories,
    "text_to_image": HeldOutPrompts,
    "sd": StableDiffusion,
    "sequences": Sequences,
    "molecules": Molecules,
    "control": Control,
    "custom": Custom,
    "exact": Exact,
}


def recipe_summaries() -> dict[str, str]:
    """One line for each recipe, from its docstring."""
    return {name: (kind.__doc__ or "").strip().splitlines()[0] for name, kind in RECIPES.items()}
