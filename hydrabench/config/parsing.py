"""Checking values against a model: every problem is reported, with its place, in one line.

Conflicts between values are reported only for sections whose values are right one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hydrabench.config.fields import BY_LAYER, FOR_ALL, Conflicts
from hydrabench.errors import ConfigError, shortened

Parsed = TypeVar("Parsed")
Complaint = Mapping[str, Any]  # one of pydantic's: "type", "loc", "msg", "input", "ctx"
# Pydantic puts the tag of a union's member into the path of a problem.
TAGS = frozenset({FOR_ALL, BY_LAYER})


def parse(model: type[Parsed], values: Any, source: str) -> Parsed:
    """Validate `values`. Raises: ConfigError naming `source` and every problem that can be seen, in one line."""
    try:
        return TypeAdapter(model).validate_python(values)
    except ValidationError as error:
        keys: Collection[str] = getattr(model, "model_fields", ()) or getattr(model, "__dataclass_fields__", ())
        raise ConfigError(f"{source}: {described(error, keys)}") from error


def described(error: ValidationError, keys: Collection[str] = (), *, most: int | None = None) -> str:
    """The problems, all or the first `most`, in one line. keys: those that the outermost section allows."""
    shown = problems(error)[:most]
    return "; ".join(describe(problem, keys if len(place(problem)) == 1 else ()) for problem in shown)


def problems(error: ValidationError) -> list[Complaint]:
    """Every problem of an error, the conflicts of a section one by one."""
    found = [each for problem in error.errors() for each in _single(problem)]
    # A sequence is too short without its wrong items: only the items are reported.
    return [one for one in found if one["type"] != "too_short" or not any(_inside(o["loc"], one["loc"]) for o in found)]


def describe(problem: Complaint, keys: Collection[str] = (), *, tags: Collection[str] = TAGS) -> str:
    """One problem as "path: what is wrong".

    Args:
        keys: those that are allowed beside an unknown one. tags: parts of a path that are not in the file.
    """
    where = place(problem, tags)
    path = ".".join(map(str, where)) or "the file"
    if problem["type"] == "extra_forbidden":
        close = get_close_matches(str(where[-1])[:100], keys, n=1)
        allowed = f", allowed are {', '.join(keys)}" if keys else ""
        return f"{path}: unknown key{f', did you mean {close[0]!r}?' if close else allowed}"
    if problem["type"].startswith("union_tag_"):
        return f"{path}.{_unknown_tag(problem['ctx'])}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{path}: expected keys and values (got {shortened(problem['input'])})"
    if problem["type"] == "missing":
        return f"{path}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    if where:  # a text that names its field, for those who read it without a path
        message = message.removeprefix(f"{where[-1]} ").removeprefix(f"{where[-1]}: ")
    received = problem.get("input")
    shown = isinstance(received, str | int | float | None) and problem["type"] != "value_error"
    lead = f"{path}: " if where else ""  # what is wrong with several keys together names them
    return f"{lead}{message[0].lower()}{message[1:]}{f' (got {shortened(received)})' if shown else ''}"


def place(problem: Complaint, tags: Collection[str] = TAGS) -> list[int | str]:
    """Return the place of a problem in the file."""
    return [part for part in problem["loc"] if part not in tags]


def _single(problem: Any) -> list[Complaint]:
    """The conflicts of a section one by one, and any other problem as it is."""
    cause = problem.get("ctx", {}).get("error")
    return [{**problem, "msg": text} for text in cause.found] if isinstance(cause, Conflicts) else [problem]


def _inside(path: Sequence[int | str], whole: Sequence[int | str]) -> bool:
    return len(path) > len(whole) and path[: len(whole)] == whole


def _unknown_tag(context: Mapping[str, str]) -> str:
    """The key that tells the members of a union apart, and what is wrong with its value."""
    key = context["discriminator"].strip("'")
    if "tag" not in context:
        return f"{key}: is required"
    tags = sorted(tag.strip(" '") for tag in context["expected_tags"].split(","))
    close = get_close_matches(context["tag"][:100], tags, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{key}: unknown {shortened(context['tag'])}; {hint}choose one of: {', '.join(tags)}"
