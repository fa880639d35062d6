"""Everything that a plugin can add to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from hydrabench import plugins
from hydrabench.data import DATASETS, DataSet
from hydrabench.evaluators import EVALUATORS, Evaluator
from hydrabench.models import MODELS, Architecture
from hydrabench.objectives import OBJECTIVES, Objective
from hydrabench.plugins import Registry


def _objective_problem(name: str, objective: Objective) -> str | None:
    """Its settings must say their name, because a recipe chooses among objectives by it."""
    field = objective.settings.model_fields["name"]
    return None if get_args(field.annotation) == (name,) else f'its settings need the field `name: Literal["{name}"]`'


def _evaluator_problem(kind: str, evaluator: Evaluator) -> str | None:
    """Its settings must say their kind, because recipes and ledgers choose among evaluators by it."""
    allowed = get_args(evaluator.settings.model_fields["kind"].annotation)
    return None if kind in allowed else f'its settings need the field `kind: Literal["{kind}"]`'


def registries() -> tuple[Registry, ...]:
    """Return everything that a plugin can add to; operations of bounds need torch, and so does a plugin."""
    from hydrabench.bounds.program.convert import LAYERS

    return (
        Registry("objective", OBJECTIVES, Objective, _objective_problem),
        Registry("evaluator", EVALUATORS, Evaluator, _evaluator_problem),
        Registry("data set", DATASETS, DataSet),
        Registry("architecture", MODELS, Architecture),
        Registry("operation", LAYERS, Callable),  # type: ignore[arg-type]
    )


def load_plugin(path: str | Path) -> None:
    """Run a Python file that adds to the registries. Raises: as `hydrabench.plugins.load`."""
    plugins.load(Path(path), registries())
