"""Read untrusted JSON and YAML in bounded time and memory.

A document is refused when its file is too large or no regular file (a device never ends, a pipe may never begin), and
when it is nested too deeply, repeats a key, or expands to too many values through YAML aliases. Numbers that Python
cannot hold are refused, too. Every refusal is one line that names the document.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hydrabench.errors import ConfigError

RECIPE_BYTES = 1 << 18  # PyYAML reads about 100 kB a second
JSON_BYTES = 1 << 28
DEEPEST = 50  # sections inside sections
_BRACKET_OR_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
MOST_VALUES = 20_000  # of a YAML document, each alias counted with everything that it stands for


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes.

    Raises: ConfigError if it is larger or no regular file; OSError if it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise ConfigError(f"{path} is {what}; give a regular file")
    with path.open("rb") as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise ConfigError(f"{path} has more than {limit:,} bytes, the most that is read here; is it the right file?")
    return found


def read_text(path: Path, limit: int = JSON_BYTES) -> str:
    """Return the text of a UTF-8 file. Raises: as `read_bytes`; ConfigError if it is not UTF-8."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error


def parse_json(text: str, source: str) -> Any:
    """Return the value of a JSON text, in which numbers are finite and no object has a key twice.

    Args: source: what the text is called in messages, for example its path.
    Raises: ConfigError that says what is wrong and where.
    """
    if _nested_deeply(text):
        raise ConfigError(f"{source} is not readable as JSON: it is nested too deeply, more than {DEEPEST} levels")
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant, parse_float=_finite)
    except ValueError as error:
        raise ConfigError(f"{source} is not readable as JSON: {_reason(error)}") from error


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Return the value of a JSON file. Raises: as `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit), str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text: plain values, sequences, and mappings in which no key stands twice.

    What looks like a date stays a text. Aliases are allowed, as long as the document stays small when each is
    replaced by what it stands for.

    Args: source: as for `parse_json`.
    Raises: ConfigError that says what is wrong and where.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ConfigError(f"{source} is not YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        # Explicit tags such as `!!timestamp soon` raise nearly anything.
        raise ConfigError(f"{source} is not YAML: {_reason(error)}") from error


def read_yaml(path: Path, limit: int = RECIPE_BYTES) -> Any:
    """Return the value of a YAML file. Raises: as `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(path, limit), str(path))


def _nested_deeply(text: str) -> bool:
    """Return whether a JSON text has more than `DEEPEST` brackets open at once.

    It is known before Python's parser sees the text: that one overflows the stack where a library has raised Python's
    limit of recursion.
    """
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    depth = 0
    for token in _BRACKET_OR_TEXT.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > DEEPEST:
            return True
    return False


def _reason(error: Exception) -> str:
    """The message in one line, without advice for programmers."""
    text = " ".join(str(error).split())
    return "a number has more than 4,300 digits" if "integer string conversion" in text else text


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with limits, without dates, and strict about keys."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one value, whose depth is known before anything inside it is read."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Read the document, and refuse it before its values are made if there are too many."""
        node = super().get_single_node()
        if node is not None and _expanded(node, {}, set()) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _expanded(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Return how many values a node stands for, aliases expanded.

    Raises: YAMLError for a node that contains itself, or a mapping in which a key stands twice.
    """
    if id(node) in above:
        raise yaml.YAMLError(f"the value in line {node.start_mark.line + 1} contains itself")
    if id(node) not in known:
        known[id(node)] = 1 + sum(_expanded(child, known, above | {id(node)}) for child in _children(node))
    return known[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    """The nodes directly inside one; the keys of a mapping are looked at before merges (`<<`) repeat them."""
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    seen: set[tuple[str, str]] = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"the key {key.value!r} stands twice, again in line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
        yield from (key, value)
