"""Reading recipes and checking them: every problem is reported, with its place, in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hydrabench.config import Normalization, PseudoLabelRecipe
from hydrabench.config.parsing import TAGS, Complaint, describe, place, problems
from hydrabench.documents import parse_yaml
from hydrabench.errors import ConfigError, shortened
from hydrabench.evaluators import with_default_threat
from hydrabench.recipes.choice import evaluation_models, objective_models
from hydrabench.recipes.inheritance import completed_values, find_recipe, resolved_values
from hydrabench.recipes.phases import FinetuneRecipe, PruneRecipe, TrainRecipe
from hydrabench.recipes.recipe import DataSection, ModelRecipe, PipelineRecipe, Recipe
from hydrabench.recipes.registries import load_plugin

_SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelRecipe,
    "normalization": Normalization,
    "data": DataSection,
    "pseudo_labels": PseudoLabelRecipe,
    "train": TrainRecipe,
    "prune": PruneRecipe,
    "finetune": FinetuneRecipe,
    "pipeline": PipelineRecipe,
}


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and those it is based on, apply `KEY=VALUE` overrides ("train.epochs=3"), and check all of it.

    Its plugins are run first, so that it can choose from what they add.

    Args:
        source: a YAML file, the name of a recipe that comes with hydrabench ("digits-trades"), or the values.
        overrides: dotted keys with YAML values.
    Raises: ConfigError with every problem that can be seen, and its place.
    """
    if isinstance(source, Mapping):
        file, values = Path("the recipe"), completed_values(source)
    else:
        file = find_recipe(Path(source))
        values = resolved_values(file)
    for override in overrides:
        apply_override(values, override)
    for plugin in values["plugins"] if isinstance(values.get("plugins"), list) else ():
        load_plugin(str(plugin))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{file}: {'; '.join(_descriptions(problems(error), values))}") from error


def _descriptions(found: Sequence[Complaint], values: Any) -> list[str]:
    """Describe the problems, each once: a wrong value that evaluations inherit is reported at the objective."""
    own = [problem for problem in found if not _is_inherited(problem["loc"], values)]
    places = [".".join(map(str, place(problem, _tags()))) for problem in own]
    heirs: dict[tuple[str, str], list[Complaint]] = {}  # by where a value stands and what is wrong with it
    for problem in found:
        if _is_inherited(problem["loc"], values):
            heirs.setdefault((f"objective.{problem['loc'][-1]}", problem["msg"]), []).append(problem)
    lines = [_describe(problem) for problem in own]
    for (where, _), same in heirs.items():
        if where not in places:
            entries = ", ".join(f"evaluate.{problem['loc'][1]}" for problem in same)
            lines.append(f"{_describe({**same[0], 'loc': (where,)})} (inherited by {entries})")
    return lines


def _is_inherited(path: tuple[int | str, ...], values: Any) -> bool:
    """Return whether a value of an `evaluate:` entry was inherited from the objective."""
    if len(path) != 4 or path[0] != "evaluate":  # evaluate, number, kind, key
        return False
    entry, objective = values["evaluate"][path[1]], values.get("objective")
    return isinstance(objective, dict) and path[3] not in entry and path[3] in with_default_threat(entry, objective)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key in nested dictionaries, from KEY=VALUE. Raises: ConfigError if it is none."""
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last:
        raise ConfigError(f"--set {shortened(override)}: write KEY=VALUE, for example --set train.epochs=3")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {shortened(override)}: {parent!r} is a value, not a section")
    values[last] = parse_yaml(text, f"--set {shortened(override)}")


def _describe(problem: Complaint) -> str:
    return describe(problem, _known_keys(problem["loc"]), tags=_tags())


def _tags() -> set[str]:
    """Parts of a path that pydantic adds: the name of the model that was chosen."""
    return {*objective_models(), *evaluation_models(), *TAGS}


def _known_keys(path: Sequence[Any]) -> list[str]:
    """The keys allowed where the last key of `path` stands."""
    sections = [part for part in path[:-1] if isinstance(part, str)]
    if not sections:
        return list(Recipe.model_fields)
    tagged: Mapping[str, type[BaseModel]] = objective_models() if "objective" in sections else evaluation_models()
    return list((tagged.get(sections[-1]) or _SECTIONS.get(sections[-1], Recipe)).model_fields)
