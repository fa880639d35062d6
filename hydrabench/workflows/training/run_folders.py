"""The folders of training runs if the user names none."""

from __future__ import annotations

from pathlib import Path

from hydrabench.recipes import BudgetRecipe, Recipe, SectionName


def default_folder(recipe: Recipe, step: SectionName, *, ref: str = "", lwm: bool = False) -> Path:
    """runs/RECIPE/train, runs/RECIPE/prune-DENSITY, runs/RECIPE/finetune/SOURCE or runs/RECIPE/lwm-DENSITY/SOURCE.

    Args:
        ref: the checkpoint that is finetuned. lwm: whether its weights are chosen by magnitude first.
    """
    folder = Path("runs") / recipe.name
    if step == "train":
        return folder / "train"
    if step == "prune":
        return folder / f"prune-{_kept(recipe.prune)}"
    source = Path(ref).name.removesuffix(".safetensors")
    return folder / (f"lwm-{_kept(recipe.finetune)}" if lwm else "finetune") / source


def _kept(section: BudgetRecipe | None) -> str:
    """A section's density as part of a folder's name."""
    density = section.density if section else None
    return "by-layer" if isinstance(density, dict) else f"{density or 1:g}"
