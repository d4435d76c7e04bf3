"""The typed recipe: schema, loading, overrides, and every error at once.

Imports neither torch nor transformers, so that checking a recipe is instant.
"""

from sktune.errors import Problem
from sktune.recipe.errors import RecipeError
from sktune.recipe.loading import (
    LoadedRecipe,
    dump_recipe,
    flatten,
    load_recipe,
    load_recipe_document,
    load_sections,
    parse_recipe,
    validate_files,
)
from sktune.recipe.recipe import Recipe
from sktune.recipe.rules.training import DEEPSPEED_PRESETS
from sktune.sections import (
    CompareSection,
    DataSection,
    DistributedSection,
    ModelSection,
    OutputSection,
    QuantizationSection,
    TrackingSection,
    TrainingSection,
)

__all__ = [
    "DEEPSPEED_PRESETS",
    "CompareSection",
    "DataSection",
    "DistributedSection",
    "LoadedRecipe",
    "ModelSection",
    "OutputSection",
    "Problem",
    "QuantizationSection",
    "Recipe",
    "RecipeError",
    "TrackingSection",
    "TrainingSection",
    "dump_recipe",
    "flatten",
    "load_recipe",
    "load_recipe_document",
    "load_sections",
    "parse_recipe",
    "validate_files",
]
