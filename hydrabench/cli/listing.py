"""The command list: what can be chosen, with a line on each."""

from __future__ import annotations

import inspect
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import click

from hydrabench.cli.common import plugin_option


def _evaluators(choice: str) -> Callable[[], dict[str, str]]:
    def lines() -> dict[str, str]:
        from hydrabench.cli.evaluators import evaluators_of
        from hydrabench.evaluators import said

        found = evaluators_of(choice)
        return {kind: said(one.meaning, one.settings.model_construct(kind=kind)) for kind, one in found.items()}

    return lines


def _objectives() -> dict[str, str]:
    from hydrabench.objectives import OBJECTIVES

    return {name: _first_line(one.settings) for name, one in OBJECTIVES.items()}


def _datasets() -> dict[str, str]:
    from hydrabench.data import DATASETS
    from hydrabench.data.forms import OWN_PLACES

    known = {
        name: f"{' x '.join(map(str, one.shape))}, {one.num_classes} classes, {one.train:,} training and {one.test:,} "
        "test images"
        for name, one in DATASETS.items()
    }
    return {**known, **{form: f"your own: {text}" for form, text in OWN_PLACES.items()}}


def _architectures() -> dict[str, str]:
    import torch

    from hydrabench.models import MODELS

    found = {}
    for name, one in MODELS.items():
        large = name.startswith("ResNet")  # these are for ImageNet
        shape = one.shape or ((3, 224, 224) if large else (3, 32, 32))
        classes = one.num_classes or (1000 if large else 10)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in one.build(shape, classes).parameters())
        found[name] = f"{count:,} parameters for images of {' x '.join(map(str, shape))} and {classes} classes"
    return found


def _recipes() -> dict[str, str]:
    from hydrabench.documents import read_text
    from hydrabench.files import shipped

    files = sorted(shipped("configs").glob("*.yml"))
    return {file.stem: _first_sentence(read_text(file)) for file in files}


def _first_sentence(recipe: str) -> str:
    """Return the first sentence of the comment with which a recipe begins, which may go over several lines."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), recipe.splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    found = re.match(r".+?(?<!et al)\.(?=\s+[A-Z`]|$)", text)
    return found[0] if found else text


def _first_line(described: Any) -> str:
    return (inspect.getdoc(described) or "").partition("\n")[0]


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "attacks": _evaluators("attack"),
    "methods": _evaluators("method"),
    "objectives": _objectives,
    "datasets": _datasets,
    "architectures": _architectures,
    "recipes": _recipes,
}


@click.command("list", short_help="List what can be chosen, with a line on each.")
@click.argument("kind", type=click.Choice(list(KINDS)))
@plugin_option
def listing(kind: str) -> None:
    """List what can be chosen, with a line on each; what a --plugin adds is listed, too.

    \b
    Examples
      hydrabench list attacks
      hydrabench list architectures
    """
    lines = KINDS[kind]()
    width = max(map(len, lines))
    for name, text in sorted(lines.items()):
        line = f"{name:<{width}}  {text}".rstrip()
        click.echo(_wrapped(line, width + 2) if sys.stdout.isatty() else line)


def _wrapped(line: str, indent: int) -> str:
    """Break a line where the terminal ends; further lines stand below its text."""
    room = max(shutil.get_terminal_size().columns, indent + 20)
    return textwrap.fill(line, room, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
