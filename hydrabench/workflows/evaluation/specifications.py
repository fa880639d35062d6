"""Values of --model: code that builds a network (see `models.own_code`), or a file that holds one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydrabench.checkpoints.foreign.program_files import is_file_of_network
from hydrabench.checkpoints.own_code import build_own
from hydrabench.errors import ConfigError, shortened
from hydrabench.files import close_name
from hydrabench.models.own_code import CODE_FORMS, Built, CodeFile

SPEC_FORMS = f"{CODE_FORMS}, or a file: ONNX (.onnx), torch.export (.pt2) or TorchScript (.pt)"


def build(
    spec: str, arguments: Sequence[str], num_classes: int, shape: tuple[int, int, int]
) -> tuple[Built, dict[str, Any]]:
    """Build the network of --model; also return what decides it beside its tensors.

    Args:
        spec: see `SPEC_FORMS`. arguments: KEY=VALUE, passed by keyword to a class or a function.
        num_classes: for the networks of libraries, unless an argument says it.
        shape: of the images, (C, H, W); an ONNX file may take them in another layout.
    Raises: ConfigError or CheckpointError in one line, with the line of the user's code if that fails.
    """
    given = dict(map(_argument, arguments))
    if ":" not in spec and not is_file_of_network(spec):
        raise ConfigError(f"--model {shortened(spec)} names no network; give {SPEC_FORMS}{_meant(Path(spec))}")
    built = build_own(spec, given, num_classes, shape)
    identity: dict[str, Any] = {"spec": spec} if is_file_of_network(spec) else {"spec": spec, "arguments": given}
    return built, {**identity, **decisive(built)}


def _meant(path: Path) -> str:
    """Return what a specification without a colon may have meant: a file of code without a name, or another file."""
    return f"; for example {path}:build" if path.suffix == ".py" and path.is_file() else close_name(path)


def decisive(built: Built) -> Mapping[str, str]:
    """Return what decides a network beside its specification and tensors: the hash of its file, a library's version."""
    if built.version is not None:
        return {"version": built.version}
    return {"file_sha256": built.source.sha256} if isinstance(built.source, CodeFile) else {}


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ConfigError(f"--model-args {shortened(text)} is not KEY=VALUE; write for example --model-args width=2")
    with suppress(ValueError):
        return key, json.loads(value)
    return key, value
