"""Errors that a user can fix, and the one way to look a name up in a registry."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

Item = TypeVar("Item")

# Beside torch.OutOfMemoryError: what the CPU's allocator and CUDA's libraries say when there is no memory left.
SHORTAGES = ("out of memory", "can't allocate memory", "_ALLOC_FAILED", "Storage size calculation overflowed")


class HydrabenchError(Exception):
    """A mistake of the user's: the command line prints it as one line and exits with `status`."""

    status = 1


class ConfigError(HydrabenchError):
    """A recipe, an override or an option holds a value that is not allowed."""


class CheckpointError(HydrabenchError):
    """A checkpoint is missing, damaged, or does not fit the request."""


class DataError(HydrabenchError):
    """A data set is missing, incomplete, or smaller than requested."""


class LedgerError(HydrabenchError):
    """A run folder cannot be used: it belongs to another run, is incomplete, or is damaged."""


class UnsupportedLayerError(HydrabenchError):
    """A bound met an operation that it has no sound rule for."""


class NonFiniteError(HydrabenchError):
    """A loss or a bound is NaN or infinite; the run stops instead of reporting it."""


class MemoryShortageError(HydrabenchError):
    """The device has too little memory for a command, however small the pieces."""


class GateError(HydrabenchError):
    """The numbers are there, but they contradict each other or miss what was demanded."""


class IncomparableError(HydrabenchError):
    """Runs cannot be compared with a baseline, so that nothing is known of them, neither good nor bad."""

    status = 3


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of torch's says that memory has run out."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in SHORTAGES)


def shortened(value: object, longest: int = 80) -> str:
    """Return the `repr` of a value that somebody gave, cut in the middle if it has more than `longest` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of more than 4,300 digits; values inside values
        return f"a {type(value).__name__} that is too large to show"
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def lookup(kind: str, registry: Mapping[str, Item], name: str) -> Item:
    """Return `registry[name]`.

    Raises: ConfigError naming `name`, the closest entry and all entries if there is none of that name.
    """
    if name in registry:
        return registry[name]
    close = get_close_matches(name[:100], registry, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"unknown {kind} {shortened(name)}; {hint}choose one of: {', '.join(sorted(registry))}")
