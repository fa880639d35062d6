"""Values of --model: code that builds a network (see `models.own_code`), or a file that holds one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydrabench.checkpoints.foreign.onnx_reader import read_onnx
from hydrabench.checkpoints.foreign.programs import PROGRAMS
from hydrabench.errors import ConfigError, shortened
from hydrabench.files import sha256_of
from hydrabench.models.own_code import CODE_FORMS, Built, CodeFile, build_code

ONNX = ".onnx"
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
    if Path(spec).suffix in (*PROGRAMS, ONNX):
        if given:
            raise ConfigError(f"--model-args are for a class or a function; {spec} is built already, leave them out")
        return _program(Path(spec), shape)
    if ":" not in spec:
        raise ConfigError(f"--model {shortened(spec)} names no network; give {SPEC_FORMS}")
    built = build_code(spec, given, num_classes)
    return built, {"spec": spec, "arguments": given, **decisive(built)}


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


def _program(path: Path, shape: tuple[int, int, int]) -> tuple[Built, dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"--model {path}: there is no such file")
    identity = {"spec": str(path), "file_sha256": sha256_of(path)}
    if path.suffix == ONNX:
        network = read_onnx(path, shape)
        module, check = network.for_images(shape), network.require_same_on_images
        return Built(module, path.name, str(path), check=check), identity
    return Built(PROGRAMS[path.suffix](path), path.name, str(path)), identity
