"""Plugins: Python files of the user's that add to the registries, and what is remembered of those that were loaded.

A plugin is run as the user's own code, in every process of a command. It adds entries: `OBJECTIVES["mart"] =
Objective(...)`. Runs and checkpoints name the plugins that were loaded when they were written.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hydrabench.documents import read_bytes
from hydrabench.errors import ConfigError, HydrabenchError
from hydrabench.files import close_name

PLUGIN_BYTES = 1 << 22
SHOWN = 12  # characters of a hash in messages
_loaded: dict[str, str] = {}  # SHA-256 by file name


@dataclass(frozen=True)
class Registry:
    """A dictionary that plugins may add to.

    what: its entries are called. entries: the dictionary. kind: the type of its entries. problem: says what is wrong
    with an entry under a name, None if nothing.
    """

    what: str
    entries: MutableMapping[Any, Any]
    kind: type
    problem: Callable[[Any, Any], str | None] = lambda _name, _entry: None


def load(path: Path, registries: Sequence[Registry]) -> None:
    """Run a plugin, which adds to `registries`; the same file again does nothing.

    Raises: ConfigError in one line if there is no such file, if it fails (with the line), takes a name that an entry
        has already, or adds nothing. Then the registries are as they were before.
    """
    try:
        source = read_bytes(path, PLUGIN_BYTES)
    except OSError as error:
        raise ConfigError(
            f"no plugin {str(path)!r} ({error.strerror}); --plugin takes a Python file{close_name(path)}"
        ) from error
    digest = hashlib.sha256(source).hexdigest()
    if _loaded.get(path.name) == digest:
        return
    if path.name in _loaded:
        raise ConfigError(f"plugin {path}: another file of the name {path.name} is loaded already; rename one of them")
    before = [dict(registry.entries) for registry in registries]
    module = ModuleType(f"hydrabench_plugin_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where pydantic and pickle look names up
    try:
        _run(source, path, module)
        _check(path, registries, before)
    except HydrabenchError:
        del sys.modules[module.__name__]
        for registry, entries in zip(registries, before, strict=True):
            registry.entries.clear()
            registry.entries.update(entries)
        raise
    _loaded[path.name] = digest


def loaded() -> list[dict[str, str]]:
    """Return the plugins of this process as runs and checkpoints name them: file name and SHA-256 of each, by name."""
    return [{"file": file, "sha256": digest} for file, digest in sorted(_loaded.items())]


def require(wanted: Iterable[Mapping[str, str]], source: str) -> None:
    """Check that the plugins are loaded with which `source` was written; say it if one of them has changed.

    Args:
        wanted: as `loaded` returned them.
    Raises: ConfigError naming the first that is missing.
    """
    for plugin in wanted:
        file, digest = plugin["file"], plugin["sha256"]
        if file not in _loaded:
            raise ConfigError(f"{source} needs plugin {file} (sha256 {digest[:SHOWN]}…): give --plugin {file}")
        if _loaded[file] != digest and os.environ.get("RANK", "0") == "0":
            logging.getLogger(__name__).warning(
                f"{source} was written with another version of plugin {file} (sha256 {digest[:SHOWN]}…, now "
                f"{_loaded[file][:SHOWN]}…)"
            )


def _run(source: bytes, path: Path, module: ModuleType) -> None:
    """Execute a plugin. Raises: ConfigError naming the line of whatever goes wrong in it."""
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise ConfigError(f"plugin {path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        message = " ".join(str(error).split())
        raise ConfigError(
            f"plugin {path}, line {lines[-1] if lines else 1}: {type(error).__name__}: {message}"
        ) from error


def _check(path: Path, registries: Sequence[Registry], before: Sequence[Mapping[Any, Any]]) -> None:
    """Refuse a plugin that replaces an entry, adds one of another type, or adds none."""
    added = 0
    for registry, entries in zip(registries, before, strict=True):
        taken = [name for name, entry in entries.items() if registry.entries.get(name) is not entry]
        if taken:
            raise ConfigError(
                f"plugin {path}: the {registry.what} {_shown(taken[0])} was there before; choose another name"
            )
        for name in [name for name in registry.entries if name not in entries]:
            entry, added = registry.entries[name], added + 1
            if not isinstance(entry, registry.kind):
                raise ConfigError(
                    f"plugin {path}: {registry.what} {_shown(name)} is of type {type(entry).__name__}; it "
                    f"must be of type {registry.kind.__name__}"
                )
            if problem := registry.problem(name, entry):
                raise ConfigError(f"plugin {path}: {registry.what} {_shown(name)}: {problem}")
    if not added:
        kinds = ", ".join(registry.what for registry in registries)
        raise ConfigError(f"plugin {path} adds nothing; it can add an entry to the registry of each: {kinds}")


def _shown(name: Any) -> str:
    return name.__qualname__ if isinstance(name, type) else repr(name)
