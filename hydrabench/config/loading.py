"""Reading recipes and checking them: every problem is reported, with its place, in one line.

What is wrong with several values together can be seen only where each of them is right: it is reported for all sections
in which they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from hydrabench.config.data import DataRecipe, PseudoLabelRecipe
from hydrabench.config.evaluation import EVALUATIONS, with_default_threat
from hydrabench.config.fields import BY_LAYER, FOR_ALL, Conflicts
from hydrabench.config.inheritance import find_recipe, resolved_values
from hydrabench.config.objectives import OBJECTIVE_SETTINGS
from hydrabench.config.phases import FinetuneRecipe, PruneRecipe, TrainRecipe
from hydrabench.config.recipe import ModelRecipe, Normalization, PipelineRecipe, Recipe
from hydrabench.documents import parse_yaml
from hydrabench.errors import ConfigError, shortened

Parsed = TypeVar("Parsed")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and those it is based on, apply `KEY=VALUE` overrides ("train.epochs=3"), and check all of it.

    Args:
        path: a YAML file, or the name of a recipe that comes with hydrabench ("digits-trades").
        overrides: dotted keys with YAML values.
    Raises: ConfigError with every problem that can be seen, and its place.
    """
    file = find_recipe(Path(path))
    values = resolved_values(file)
    for override in overrides:
        _apply(values, override)
    return parse(TypeAdapter(Recipe), values, str(file))


def parse(adapter: TypeAdapter[Parsed], values: Any, source: str) -> Parsed:
    """Validate `values`. Raises: ConfigError naming `source` and every problem that can be seen, in one line."""
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        found = [each for problem in error.errors() for each in _single(problem)]
        # Where parts of a sequence are wrong, that it is too short without them is no news.
        whole = [
            one for one in found if one["type"] != "too_short" or not any(_inside(o["loc"], one["loc"]) for o in found)
        ]
        raise ConfigError(f"{source}: {'; '.join(_descriptions(whole, values))}") from error


def _single(problem: Any) -> list[Any]:
    """The conflicts of a section one by one, and any other problem as it is."""
    cause = problem.get("ctx", {}).get("error")
    return [{**problem, "msg": text} for text in cause.found] if isinstance(cause, Conflicts) else [problem]


def _inside(place: tuple[int | str, ...], whole: tuple[int | str, ...]) -> bool:
    return len(place) > len(whole) and place[: len(whole)] == whole


def _descriptions(problems: Sequence[Any], values: Any) -> list[str]:
    """What is wrong, each thing once: an inherited value where it stands, however many evaluations inherit it."""
    own = [problem for problem in problems if not _is_inherited(problem["loc"], values)]
    places = [".".join(map(str, _place(problem))) for problem in own]
    heirs: dict[tuple[str, str], list[Any]] = {}  # by where a value stands and what is wrong with it
    for problem in problems:
        if _is_inherited(problem["loc"], values):
            heirs.setdefault((f"objective.{problem['loc'][-1]}", problem["msg"]), []).append(problem)
    lines = [_describe(problem) for problem in own]
    for (place, _), same in heirs.items():
        if place not in places:
            entries = ", ".join(f"evaluate.{problem['loc'][1]}" for problem in same)
            lines.append(f"{_describe({**same[0], 'loc': (place,)})} (inherited by {entries})")
    return lines


def _is_inherited(place: tuple[int | str, ...], values: Any) -> bool:
    """Whether a value of an entry of `evaluate:` is that of the objective."""
    if len(place) != 4 or place[0] != "evaluate":  # evaluate, number, kind, key
        return False
    entry, objective = values["evaluate"][place[1]], values.get("objective")
    return isinstance(objective, dict) and place[3] not in entry and place[3] in with_default_threat(entry, objective)


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key in nested dictionaries."""
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last:
        raise ConfigError(f"--set {shortened(override)}: write KEY=VALUE, for example --set train.epochs=3")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {shortened(override)}: {parent!r} is a value, not a section")
    values[last] = parse_yaml(text, f"--set {shortened(override)}")


def _describe(problem: Any) -> str:
    """One problem as "path: what is wrong", with a suggestion for a misspelt key."""
    place = _place(problem)
    path = ".".join(map(str, place)) or "the file"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"])
        close = get_close_matches(str(place[-1]), known, n=1)
        return f"{path}: unknown key, " + (
            f"did you mean {close[0]!r}?" if close else f"allowed are {', '.join(known)}"
        )
    if problem["type"].startswith("union_tag_"):
        return f"{path}.{_unknown_tag(problem['ctx'])}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{path}: expected keys and values (got {shortened(problem['input'])})"
    if problem["type"] == "missing":
        return f"{path}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    received = problem.get("input")
    shown = isinstance(received, str | int | float | None) and problem["type"] != "value_error"
    where = f"{path}: " if place else ""  # what is wrong with several keys together names them
    return f"{where}{message[0].lower()}{message[1:]}{f' (got {shortened(received)})' if shown else ''}"


def _place(problem: Any) -> list[int | str]:
    """Where a problem stands in the file."""
    return [part for part in problem["loc"] if not (isinstance(part, str) and part in _TAGS)]


def _unknown_tag(context: Mapping[str, str]) -> str:
    """The key that tells the members of a union apart, and what is wrong with its value."""
    key = context["discriminator"].strip("'")
    if "tag" not in context:
        return f"{key}: is required"
    tags = sorted(tag.strip(" '") for tag in context["expected_tags"].split(","))
    close = get_close_matches(context["tag"], tags, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{key}: unknown {key} {context['tag']!r}; {hint}choose one of: {', '.join(tags)}"


# Pydantic puts the tag of a union's member into the path; it says which model a misspelt key belongs to.
_TAGS = {*OBJECTIVE_SETTINGS, *EVALUATIONS, FOR_ALL, BY_LAYER}
_SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelRecipe,
    "normalization": Normalization,
    "data": DataRecipe,
    "pseudo_labels": PseudoLabelRecipe,
    "train": TrainRecipe,
    "prune": PruneRecipe,
    "finetune": FinetuneRecipe,
    "pipeline": PipelineRecipe,
}


def _known_keys(place: Sequence[Any]) -> list[str]:
    """The keys allowed where the misspelt key of `place`, a path with tags, stands."""
    sections = [part for part in place[:-1] if isinstance(part, str)]
    if not sections:
        return list(Recipe.model_fields)
    tagged = OBJECTIVE_SETTINGS if "objective" in sections else EVALUATIONS
    return list((tagged.get(sections[-1]) or _SECTIONS.get(sections[-1], Recipe)).model_fields)
