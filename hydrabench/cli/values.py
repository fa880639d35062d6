"""Values of options that are names: completed by the shell, and refused if they are none and the list is closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

Names = Callable[[], Iterable[str]]


class Name(click.ParamType):  # type: ignore[type-arg]
    """One of some names, which are looked up when they are first needed: a plugin may add to them.

    closed: whether any other value is bad usage; if not, whoever takes the value says what is wrong with it.
    files: whether the value may also be a path, which the shell completes.
    """

    name = "text"

    def __init__(self, names: Names, *, closed: bool = False, files: bool = False) -> None:
        self.names, self.closed, self.files = names, closed, files

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str | None:  # noqa: ARG002
        """Return the names, if they are all there are."""
        return f"[{'|'.join(self.names())}]" if self.closed else None

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value, if it may be one."""
        if self.closed and value not in (names := list(self.names())):
            self.fail(f"{value!r} is not one of {', '.join(map(repr, names))}.", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Return the names that begin so, and let the shell add its files."""
        found = [CompletionItem(name) for name in sorted(self.names()) if name.startswith(incomplete)]
        return [*found, CompletionItem(incomplete, type="file")] if self.files else found


def closed(*names: str) -> Name:
    """Return the type of a value that is one of `names` and nothing else."""
    return Name(lambda: names, closed=True)


def _zoo() -> Iterable[str]:
    from hydrabench.checkpoints import read_zoo

    return read_zoo()


def _recipes() -> Iterable[str]:
    from hydrabench.files import shipped

    return [file.stem for file in shipped("configs").glob("*.yml")]


def _datasets() -> Iterable[str]:
    from hydrabench.data import DATASETS
    from hydrabench.data.forms import OWN_KINDS

    return [*DATASETS, *(f"{kind}:" for kind in OWN_KINDS)]


def _architectures() -> Iterable[str]:
    from hydrabench.models import MODELS

    return MODELS


def _objectives() -> Iterable[str]:
    from hydrabench.objectives import OBJECTIVES

    return OBJECTIVES


def _normalizations() -> Iterable[str]:
    from hydrabench.checkpoints.foreign.normalization import KNOWN

    return KNOWN


CHECKPOINT, RECIPE = Name(_zoo, files=True), Name(_recipes, files=True)
ENTRY, DATASET, ARCHITECTURE, OBJECTIVE = Name(_zoo), Name(_datasets), Name(_architectures), Name(_objectives)
NORMALIZATION, DEVICE = Name(_normalizations), Name(lambda: ("auto", "cpu", "cuda", "cuda:0"))
