"""Networks of the user's own code, by a specification: FILE.py:NAME, package.module:NAME, a library's, or a file.

Python code is run because that is what such a specification means; nothing else here runs any.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from hydrabench.checkpoints.foreign.programs import PROGRAMS
from hydrabench.errors import ConfigError, shortened
from hydrabench.files import sha256_of

SPEC_FORMS = (
    "FILE.py:NAME, package.module:NAME, torchvision:NAME, timm:NAME, or a file of torch.export (.pt2) or TorchScript "
    "(.pt)"
)


@dataclass(frozen=True)
class Built:
    """A network in the user's words. name: short, for tables and folders. identity: what decides it beside tensors.

    normalizes: whether what it does to images first is its own business; otherwise that must be given.
    """

    module: nn.Module
    name: str
    identity: dict[str, Any]
    normalizes: bool = True


def build(spec: str, arguments: Sequence[str], num_classes: int) -> Built:
    """Build the network of --model.

    Args:
        spec: see `SPEC_FORMS`. arguments: KEY=VALUE, passed by keyword to a class or a function.
        num_classes: for the networks of libraries, unless an argument says it.
    Fresh weights are drawn from seed 0, so that the same specification is the same network.
    Raises: ConfigError or CheckpointError in one line, with the line of the user's code if that fails.
    """
    given = dict(map(_argument, arguments))
    place, _, name = spec.rpartition(":")
    suffix = Path(spec).suffix
    if suffix in PROGRAMS:
        if given:
            raise ConfigError(f"--model-args are for a class or a function; {spec} is built already, leave them out")
        return _program(Path(spec))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if place in LIBRARIES:
            module = LIBRARIES[place](name, {"num_classes": num_classes, **given})
            identity = {"spec": spec, "arguments": given, "version": importlib.import_module(place).__version__}
            return Built(module, f"{place}-{name}", identity, normalizes=False)
        if not place or not name.isidentifier():
            raise ConfigError(f"--model {shortened(spec)} names no network; give {SPEC_FORMS}")
        found, file = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
        module = _made(found, name, spec, given, file)
    identity = {"spec": spec, "arguments": given}
    identity |= {"file_sha256": sha256_of(file)} if file is not None else {}
    return Built(module, f"{Path(place).stem if place.endswith('.py') else place}-{name}", identity)


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ConfigError(f"--model-args {shortened(text)} is not KEY=VALUE; write for example --model-args width=2")
    with suppress(ValueError):
        return key, json.loads(value)
    return key, value


def _program(path: Path) -> Built:
    if not path.is_file():
        raise ConfigError(f"--model {path}: there is no such file")
    identity = {"spec": str(path), "file_sha256": sha256_of(path)}
    return Built(PROGRAMS[path.suffix](path), path.name, identity)


def _from_file(path: Path) -> tuple[ModuleType, Path]:
    """Run a file as a module; what lies beside it can be imported from it."""
    if not path.is_file():
        raise ConfigError(f"--model {path}: there is no such file; give {SPEC_FORMS}")
    path = path.resolve()
    _importable(path.parent)
    spec = importlib.util.spec_from_file_location(f"hydrabench_model_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where torch and pickle look classes up
    _running(lambda: spec.loader.exec_module(module), f"--model {path.name}", path)  # type: ignore[union-attr]
    return module, path


def _from_package(name: str) -> tuple[ModuleType, Path | None]:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"--model {shortened(name)} is neither a file *.py nor a package; give {SPEC_FORMS}")
    _importable(Path.cwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--model {name}: {error}; install the package, start in its folder, or give FILE.py:NAME"
        ) from error
    except Exception as error:
        raise ConfigError(f"--model {name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    file = getattr(module, "__file__", None)
    return module, Path(file) if file else None


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _made(module: ModuleType, name: str, spec: str, given: dict[str, Any], file: Path | None) -> nn.Module:
    """The network that NAME is, or that calling it returns."""
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"--model {spec}: no {name} there; it has {', '.join(public[:8]) or 'nothing to call'}")
    found = getattr(module, name)
    if isinstance(found, nn.Module):
        if given:
            raise ConfigError(f"--model-args are for a class or a function; {name} is a module already, leave them out")
        return found
    if not callable(found):
        raise ConfigError(f"--model {spec} is {shortened(found)}, not a module, a class or a function that returns one")
    made = _running(lambda: found(**given), f"--model {spec}", file)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"--model {spec} returns a {type(made).__name__}, not a torch.nn.Module")
    return made


def _running(call: Callable[[], Any], what: str, file: Path | None) -> Any:
    """Run the user's code. Raises: ConfigError with its line if it fails."""
    try:
        return call()
    except SyntaxError as error:
        raise ConfigError(f"{what}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if file is not None and frame.filename == str(file)]
        where = f", line {lines[-1]}" if lines else ""
        message = " ".join(str(error).split())[:300]
        raise ConfigError(f"{what}{where}: {type(error).__name__}: {message}") from error


def _torchvision(name: str, given: dict[str, Any]) -> nn.Module:
    from torchvision import models  # noqa: PLC0415 - slow to import

    if name not in models.list_models():
        raise ConfigError(f"torchvision has no network {shortened(name)}; see torchvision.models.list_models()")
    return _running(lambda: models.get_model(name, weights=None, **given), f"--model torchvision:{name}", None)  # type: ignore[no-any-return]


def _timm(name: str, given: dict[str, Any]) -> nn.Module:
    try:
        import timm  # noqa: PLC0415 - may be missing
    except ImportError as error:
        raise ConfigError(f"--model timm:{name} needs timm, which is not installed; `pip install timm`") from error
    return _running(lambda: timm.create_model(name, pretrained=False, **given), f"--model timm:{name}", None)  # type: ignore[no-any-return]


LIBRARIES: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {"torchvision": _torchvision, "timm": _timm}
