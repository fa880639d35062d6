"""Networks that a checkpoint names by somebody's code: where that code may come from, and building them from it.

A checkpoint by itself never says which code is run. It opens with the file of its code beside it, if that has the
hash in the header; with a library's network and plain numbers; or with the code, or the module, that the user gives.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hydrabench.checkpoints.foreign.program_files import build_program, is_file_of_network
from hydrabench.checkpoints.header import CodeOfOthers, Header
from hydrabench.errors import CheckpointError, ConfigError, LedgerError
from hydrabench.files import replacing, sha256_of
from hydrabench.models import MODELS, build_model, inner_network
from hydrabench.models.own_code import LIBRARIES, Built, CodeFile, build_code, is_program, short_spec


@dataclass(frozen=True)
class UsedCode:
    """The code that built a network. record: as a header has it. source: the file, to keep beside checkpoints."""

    record: CodeOfOthers
    source: CodeFile | None = None

    def keep_in(self, folder: Path) -> None:
        """Write the file into a folder of checkpoints, which then open by themselves.

        Raises: LedgerError if another file of its name is there.
        """
        if self.source is None:
            return
        path = folder / self.source.name
        if path.exists():
            if sha256_of(path) != self.source.sha256:
                raise LedgerError(f"{path} is not the {self.source.name} of the checkpoint; choose another folder")
            return
        with replacing(path) as scratch:
            scratch.write_bytes(self.source.data)


@dataclass(frozen=True)
class Maker:
    """Builds the network that a header names, without its weights and its normalisation.

    folder: where the checkpoint lies; None: it is in no file. given: the code that the user names for it, or a module
    of the same layers; None for neither.
    """

    folder: Path | None = None
    given: str | nn.Module | None = None

    def require(self, header: Header, source: str) -> None:
        """Raise ConfigError if code is named for a network that is built without any, or for another network."""
        if self.given is None:
            return
        if header.code is None:
            what = "module" if isinstance(self.given, nn.Module) else f"code such as {self.given}"
            raise ConfigError(f"{source} is a {header.arch}, which needs no {what}; leave --model out")
        if isinstance(self.given, nn.Module) or is_handed(header.arch):
            return
        if short_spec(self.given) != header.arch:
            raise ConfigError(f"{source} was made with {header.arch}, not with {self.given}; name that with --model")

    def build(self, header: Header, source: str) -> tuple[nn.Module, UsedCode | None]:
        """Build it with fresh weights; also return the code, if it is not of the registry.

        Raises: ConfigError as `build_model` and `build_code`; CheckpointError if its code is not there.
        """
        if header.code is None:
            return build_model(header.arch, header.shape, header.num_classes), None
        if isinstance(self.given, nn.Module):
            return copy.deepcopy(inner_network(self.given)), UsedCode(header.code)
        spec = self.given or self._found(header, header.code, source)
        built = build_own(spec, header.code.arguments, header.num_classes, header.shape)
        return built.module, used_code(built, header.code.arguments)

    def note(self, header: Header, code: UsedCode | None, source: str) -> tuple[str, ...]:
        """Return what to say if the code is not what the checkpoint was made with; it is where the user named it."""
        known = header.code.file_sha256 if header.code else None
        if code is None or known is None or code.record.file_sha256 == known:
            return ()
        return (f"warning: {source} was made with another version of {header.arch} (sha256 {known[:12]}…)",)

    def _found(self, header: Header, code: CodeOfOthers, source: str) -> str:
        """The specification by which the code is found without the user. Raises: CheckpointError if it is not."""
        place, _, name = (header.arch, "", "") if is_program(header.arch) else header.arch.rpartition(":")
        if is_handed(header.arch):
            kind = header.arch.removeprefix(HANDED)
            raise CheckpointError(
                f"{source} was pruned or trained from a module that was handed over, a {kind}; give one like it, "
                f"load(..., model={kind}()), or name code that builds one with --model FILE.py:NAME"
            )
        remedy = f"name it with --model {header.arch}"
        if place in LIBRARIES:
            if all(isinstance(value, bool | int | float) for value in code.arguments.values()):
                return header.arch
            raise CheckpointError(f"{source} gives {place} arguments that are no numbers; {remedy} if you trust it")
        if not (place.endswith(".py") or is_program(place)) or self.folder is None:
            raise CheckpointError(f"{source} was made with code that it does not hold, {header.arch}; {remedy}")
        file = self.folder / Path(place).name
        if not file.is_file():
            raise CheckpointError(f"{source} needs {file.name}, which is not beside it; put it there, or {remedy}")
        if sha256_of(file) != code.file_sha256:
            raise CheckpointError(
                f"{file} is not the file that {source} was made with (sha256 {(code.file_sha256 or '')[:12]}…); put "
                f"that one there, or {remedy} to take this one"
            )
        return f"{file}:{name}" if name else str(file)


BY_NAME = Maker()
HANDED = "module:"  # the `arch` of a module that was handed over begins so, and its class follows


def is_handed(arch: str) -> bool:
    """Return whether a network came as a module, so that no code by itself builds it again."""
    return arch.startswith(HANDED)


def build_own(
    spec: str, arguments: Mapping[str, Any], num_classes: int, shape: tuple[int, int, int], *, seed: int = 0
) -> Built:
    """Build a network by code, with fresh weights, or read it from a file, with those that it holds.

    Args: as for `build_code`. shape: of the images, (C, H, W).
    Raises: ConfigError or CheckpointError in one line, as `build_code` and `build_program`.
    """
    if not is_file_of_network(spec):
        return build_code(spec, arguments, num_classes, seed=seed)
    if arguments:
        raise ConfigError(f"--model-args are for a class or a function; {spec} is built already, leave them out")
    return build_program(Path(spec), shape)


def used_code(built: Built, arguments: Mapping[str, Any]) -> UsedCode:
    """Return what is recorded of a network that code has built from `arguments`."""
    digest = built.source.sha256 if built.source else None
    return UsedCode(CodeOfOthers(arguments=dict(arguments), file_sha256=digest, version=built.version), built.source)


def require_recordable(arch: str, code: CodeOfOthers | None, source: str) -> None:
    """Raise ConfigError for a network that no header builds again, such as that of a .pt2 file."""
    if code is None and arch not in MODELS:
        raise ConfigError(
            f"{source} is a program of TorchScript, which no checkpoint can be built from again; give its code as "
            "FILE.py:NAME, or export --format onnx or state-dict"
        )
