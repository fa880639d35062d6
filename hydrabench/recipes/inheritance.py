"""Finding recipe files, and merging a recipe with the one that it is based on: `base: other.yml`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydrabench.data.forms import OWN_KINDS
from hydrabench.documents import read_yaml
from hydrabench.errors import ConfigError
from hydrabench.files import close_name, shipped
from hydrabench.models.own_code import is_program

REPLACED = ("objective",)  # sections whose keys depend on their `name`; with another name, nothing is inherited


def find_recipe(path: Path, beside: Path | None = None) -> Path:
    """Return the file of a recipe: one that is there, or one that comes with hydrabench.

    Args:
        path: a file, or the name of a recipe that comes with hydrabench, with or without ".yml".
        beside: the folder that relative files are looked for in; None: the working directory.
    Raises: ConfigError naming those that exist.
    """
    file = path if beside is None else beside / path
    if file.is_file():
        return file
    known = {file.stem: file for file in sorted(shipped("configs").glob("*.yml"))}
    name = path.name.removesuffix(".yml")
    if len(path.parts) == 1 and name in known:
        return known[name]
    similar = get_close_matches(name[:100], known, n=1)
    hint = close_name(file) or (f"; did you mean {similar[0]!r}?" if similar else "")
    raise ConfigError(f"no recipe {str(path)!r}; give a YAML file, or a name of `hydrabench list recipes`{hint}")


def resolved_values(file: Path) -> dict[str, Any]:
    """Read a recipe's values, on top of those of the recipe it names as its `base`, and so on down.

    `base` is a file, relative to the one that names it, or the name of a recipe that comes with hydrabench. Sections
    are merged key by key; anything else, lists included, replaces what was there. An `objective:` of another
    `name` is not merged, because its keys mean other things. `plugins:` are files relative to the recipe that names
    them; those of all recipes count. So are the file of a `model.arch` such as "mynet.py:build", and images such as
    "folder:images/train".
    Raises: ConfigError if a file is no recipe, or bases go round in a circle.
    """
    chain: list[Path] = []
    layers: list[dict[str, Any]] = []
    following: Path | None = file
    while following is not None:
        if following.resolve() in chain:
            names = " -> ".join(path.name for path in [*chain, following])
            raise ConfigError(f"{file} is based on itself: {names}; take one `base:` out")
        chain.append(following.resolve())
        values = _read(following)
        base = values.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"{following}: base: is the file or name of one recipe, got {base!r}")
        plugins = values.get("plugins")
        if isinstance(plugins, list) and all(isinstance(plugin, str) for plugin in plugins):
            values["plugins"] = [str(following.parent / plugin) for plugin in plugins]
        _place_code(values.get("model"), following.parent)
        _place_images(values.get("data"), following.parent)
        layers.append(values)
        following = find_recipe(Path(base), following.parent) if base else None
    merged: dict[str, Any] = {}
    for values in reversed(layers):
        merged = _merge(merged, values)
    return merged


def _place_code(model: Any, folder: Path) -> None:
    """Make a file that `model:` names, of code or of a network, relative to the working directory, in place."""
    arch = model.get("arch") if isinstance(model, dict) else None
    if isinstance(arch, str) and (arch.rpartition(":")[0].endswith(".py") or is_program(arch)):
        model["arch"] = str(folder / arch)


def _place_images(data: Any, folder: Path) -> None:
    """Make files that `data:` names relative to the working directory, in place."""
    for key in ("name", "test") if isinstance(data, dict) else ():
        form, _, place = str(data.get(key)).partition(":")
        if place and form in OWN_KINDS and form != "hf":
            data[key] = f"{form}:{folder / place}"


def completed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a recipe's values that are in no file, on top of those of its `base`, as `resolved_values` does.

    Files that it names are relative to the working directory.
    """
    own = copy.deepcopy(dict(values))
    base = own.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"base: is the file or name of one recipe, got {base!r}")
    return _merge(resolved_values(find_recipe(Path(base))), own) if base else own


def _read(file: Path) -> dict[str, Any]:
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file} does not hold a recipe: expected keys and values, found {type(values).__name__}")
    return values


def _merge(under: Mapping[str, Any], over: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """Return `under` with the values of `over` in their place; both are the section `key`, "" for a whole recipe."""
    if key in REPLACED and over.get("name", under.get("name")) != under.get("name"):
        return dict(over)
    merged = dict(under)
    for name, value in over.items():
        below = under.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[name] = _merge(below, value, name)
        elif name == "plugins" and isinstance(value, list) and isinstance(below, list):
            merged[name] = [*below, *(plugin for plugin in value if plugin not in below)]
        else:
            merged[name] = value
    return merged
