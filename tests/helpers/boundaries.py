"""Bad input in tables, one line for each command, and one test for each line."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from hydrabench.cli import main

LONG = "x" * 300
DIGITS = "9" * 5000
LAUGHS = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
RECIPES = {
    "brackets": "[" * 5000,
    "mappings": "{a: " * 5000,
    "laughs": LAUGHS,
    "cycle": "name: &a [*a]",
    "twice": "name: tiny\nname: other",
    "tag": "name: !!python/object/apply:os.getcwd []",
    "timestamp": "seed: !!timestamp soon",
    "unhashable": "? [1, 2]\n: 3",
    "nul": "name: \x00",
    "empty": "",
    "list": "- tiny",
    "number": "3",
    "open": "name: [tiny",
    "two": "name: a\n---\nname: b",
    "itself": "base: itself.yml",
    "gone": "base: nowhere.yml",
    "device": "base: /dev/zero",
    "long": f"base: {LONG}.yml",
    "wrong": "base: [a, b]",
    "large": "name: tiny\n" + "# filler\n" * 40_000,
}
HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, list(map(str, arguments)))


def cases(table: dict[Any, Any]) -> Any:
    """One test for each line of a table, called by its beginning."""
    names = [" ".join(map(str, key if isinstance(key, tuple) else [key]))[:60] or "nothing" for key in table]
    return pytest.mark.parametrize(("given", "message"), table.items(), ids=names)
