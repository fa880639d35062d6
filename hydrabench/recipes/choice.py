"""Sections of a recipe whose model is an entry of a registry, named by one of their own keys."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, TypeAdapter

from hydrabench.config.fields import Section
from hydrabench.data import DATASETS
from hydrabench.data.forms import OWN_FORMS, is_given, is_own
from hydrabench.errors import ConfigError, lookup
from hydrabench.evaluators import EVALUATORS
from hydrabench.models import MODELS
from hydrabench.models.own_code import CODE_FORMS, is_code
from hydrabench.objectives import OBJECTIVES, ObjectiveSettings


def objective_models() -> Mapping[str, type[Section]]:
    """The settings of every objective there is now, by its name."""
    return {name: objective.settings for name, objective in OBJECTIVES.items()}


def evaluation_models() -> Mapping[str, type[Section]]:
    """The settings of every evaluator there is now, by its kind."""
    return {kind: evaluator.settings for kind, evaluator in EVALUATORS.items()}


def _chosen(key: str, models: Callable[[], Mapping[str, type[Section]]]) -> Callable[[object], object]:
    """A check against the model that `key` names. The registry is read each time: a plugin may have added to it."""

    def check(values: object) -> object:
        union: Any = reduce(operator.or_, dict.fromkeys(models().values()))
        adapter: TypeAdapter[object] = TypeAdapter(Annotated[union, Field(discriminator=key)])
        return adapter.validate_python(values)

    return check


def _known(what: str, registry: Mapping[str, object]) -> Callable[[str], str]:
    """A check that a name stands in a registry."""

    def check(name: str) -> str:
        try:
            lookup(what, registry, name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return name

    return check


def _architecture(name: str) -> str:
    """A check that a name is an architecture of the registry, or names somebody's code."""
    try:
        return name if is_code(name) else _known("architecture", MODELS)(name)
    except ValueError as error:
        raise ValueError(f"{error}; or give code of your own, {CODE_FORMS}") from error


def _data_set(name: str) -> str:
    """A check that a name is a registered data set, files of the user's own, or images that were handed over."""
    if is_given(name) or is_own(name):
        return name
    try:
        return _known("data set", DATASETS)(name)
    except ValueError as error:
        raise ValueError(f"{error}; or give images of your own, {OWN_FORMS}") from error


ObjectiveSection = Annotated[SerializeAsAny[ObjectiveSettings], BeforeValidator(_chosen("name", objective_models))]
EvaluationSection = Annotated[Any, BeforeValidator(_chosen("kind", evaluation_models))]
DataSetName = Annotated[str, AfterValidator(_data_set)]
ArchitectureName = Annotated[str, AfterValidator(_architecture)]
