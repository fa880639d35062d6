"""Recipes: one experiment in one YAML file, read, completed and checked against everything that can be chosen."""

from hydrabench.recipes.loading import apply_override, load_recipe
from hydrabench.recipes.phases import BudgetRecipe, FinetuneRecipe, PhaseRecipe, PruneRecipe, TrainRecipe
from hydrabench.recipes.recipe import ModelRecipe, PipelineRecipe, Recipe, SectionName, sha256_of_values
from hydrabench.recipes.registries import load_plugin

__all__ = [
    "BudgetRecipe",
    "FinetuneRecipe",
    "ModelRecipe",
    "PhaseRecipe",
    "PipelineRecipe",
    "PruneRecipe",
    "Recipe",
    "SectionName",
    "TrainRecipe",
    "apply_override",
    "load_plugin",
    "load_recipe",
    "sha256_of_values",
]
