"""The import of auto_LiRPA, every call of it, and which of its errors mean that it cannot bound a network."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from types import ModuleType

import torch

from hydrabench.bounds.lirpa.shims import import_shims, shims
from hydrabench.errors import HydrabenchError, UnsupportedLayerError, is_out_of_memory

RULE_FILES = ("/auto_LiRPA/operators/", "/auto_LiRPA/patches.py")  # where its rules, and their sums of patches, stand
OWN = "/auto_LiRPA/"


@cache
def auto_lirpa() -> ModuleType:
    """Import auto_LiRPA: here and not above, because it takes seconds and may be missing.

    Raises: HydrabenchError saying how to install it.
    """
    root, compiler = logging.getLogger(), logging.getLogger("torch.utils.cpp_extension")
    handlers, level = root.handlers[:], compiler.level
    try:
        compiler.setLevel(logging.ERROR)  # it warns that there is no GPU, which auto_LiRPA does not need
        with _quiet(), import_shims():
            import auto_LiRPA  # noqa: PLC0415
    except (ImportError, AttributeError) as error:
        raise HydrabenchError(
            f"auto_LiRPA cannot be imported ({error}); install what it needs, `pip install 'hydrabench[lirpa]'`, and "
            "its release 0.3, `pip install --no-deps auto_LiRPA`, whose pins would ask for torch below 1.13"
        ) from error
    finally:  # importing it would log to stdout and change the filters of warnings for everyone
        compiler.setLevel(level)
        root.handlers[:] = handlers
    # What it logs, to stderr where nobody listens, comes as an error, too.
    logging.getLogger("auto_LiRPA").addHandler(logging.NullHandler())
    return auto_LiRPA  # type: ignore[no-any-return]


def release() -> str:
    """Return what the installed auto_LiRPA calls itself, "0.3"."""
    return str(getattr(auto_lirpa(), "__version__", "(a release without a number)"))


@contextmanager
def calling(failure: str) -> Iterator[None]:
    """Every call of auto_LiRPA: its shims in place, its output kept away, and its refusals turned into ours.

    Args: failure: what it means if it refuses, a phrase that follows "auto_LiRPA".
    Raises: UnsupportedLayerError for an error that `_is_refusal`; any other error is raised as it is.
    """
    try:
        with _quiet(), shims(auto_lirpa()):
            yield
    except Exception as error:
        if not _is_refusal(error):
            raise
        raise refusal(f"{failure} ({_last_words(error)})") from error


def refusal(what: str) -> UnsupportedLayerError:
    """The error that says what auto_LiRPA cannot do, a phrase, and what to do instead."""
    return UnsupportedLayerError(
        f"auto_LiRPA {what}; choose a method of hydrabench's own engine, or smoothing, which needs no rules"
    )


def _is_refusal(error: Exception) -> bool:
    """Return whether auto_LiRPA says that it cannot pass a network.

    It raises NotImplementedError, ValueError or AssertionError itself. Release 0.3 also has rules that make tensors of
    the wrong shape for some layers: then torch raises RuntimeError, inside such a rule. torch's exporter, by which it
    reads networks, has errors of its own for operations without a name.
    """
    if is_out_of_memory(error):
        return False
    files = [frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, torch.onnx.OnnxExporterError):
        return True
    if isinstance(error, NotImplementedError | ValueError | AssertionError):
        return OWN in files[-1]
    return type(error) is RuntimeError and any(rules in file for file in files for rules in RULE_FILES)


def _last_words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ") if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what auto_LiRPA prints and warns of out of the output of the command."""
    with warnings.catch_warnings(record=True), redirect_stdout(io.StringIO()):
        yield
