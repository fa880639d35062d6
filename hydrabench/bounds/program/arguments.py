"""The arguments of a call that torch.fx recorded, and the operations that are made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx

from hydrabench.bounds.program.operations import Operation


class NoRule(Exception):
    """The reason why a layer or a call cannot be passed; becomes an UnsupportedLayerError that says where."""


@dataclass(frozen=True)
class Call:
    """A function or method call: its operations, one after the other, and the values the first one takes.

    in_place: whether it writes its result over the first of these values. pieces: of a call that returns several
    values, the operation that gives the one with a number.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[Any, ...]
    in_place: bool = False
    pieces: Callable[[int], Operation] | None = None


class Arguments(NamedTuple):
    """The arguments of a call; values of the network and sizes are nodes of torch.fx, all else is what it is."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Reader = Callable[[Arguments], Call]
REQUIRED = object()


def given(call: Arguments, **defaults: Any) -> dict[str, Any]:
    """The arguments of a call by name, in the order of `defaults`, which fill the gaps."""
    unknown = sorted(set(call.kwargs) - set(defaults))
    if unknown or len(call.args) > len(defaults):
        raise NoRule(f"is called with {', '.join(unknown) or 'more arguments'}, which has no rule")
    found = defaults | dict(zip(defaults, call.args, strict=False)) | call.kwargs
    if any(value is REQUIRED for value in found.values()):
        raise NoRule("is called with too few arguments")
    return found


def numbers(settings: dict[str, Any]) -> None:
    """Refuse settings that are computed from a value of the network, or from its shape."""
    for name, setting in settings.items():
        parts = setting if isinstance(setting, tuple | list) else (setting,)
        if any(isinstance(part, fx.Node) for part in parts):
            raise NoRule(f"takes {name}={setting}, which is computed from a value or its shape and has no rule")


def simple(make: Callable[..., Operation], /, **defaults: Any) -> Reader:
    """The reader of a call that takes one value, and settings for `make`."""

    def read(call: Arguments) -> Call:
        found = given(call, input=REQUIRED, **defaults)
        value = found.pop("input")
        numbers(found)
        return Call((make(**found),), (value,))

    return read


def either(make: Callable[..., Operation], **defaults: Any) -> Reader:
    """Return the reader of a function that takes `inplace`."""

    def read(call: Arguments) -> Call:
        found = given(call, input=REQUIRED, **defaults, inplace=False)
        value, writes = found.pop("input"), bool(found.pop("inplace"))
        numbers(found)
        return Call((make(**found),), (value,), in_place=writes)

    return read


def two(call: Arguments) -> tuple[Any, Any]:
    """Return both arguments of a call that takes `input` and `other`."""
    found = given(call, input=REQUIRED, other=REQUIRED)
    return found["input"], found["other"]


def in_place(read: Reader) -> Reader:
    """The reader of the twin of a call that writes its result over the first value."""

    def read_in_place(call: Arguments) -> Call:
        found = read(call)
        if found.inputs[0] is not (call.args[0] if call.args else call.kwargs.get("input")):
            raise NoRule("writes over a constant, which has no rule")
        return Call(found.operations, found.inputs, in_place=True)

    return read_in_place
