"""Networks of the user's own code or of a library, by a specification: FILE.py:NAME, package.module:NAME, timm:NAME.

Python code is run because that is what such a specification means; nothing else here runs any.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hydrabench.documents import read_bytes
from hydrabench.errors import ConfigError, shortened
from hydrabench.files import cache_folder, close_name

if TYPE_CHECKING:
    from torch import Tensor, nn


CODE_BYTES = 1 << 22
PROGRAM_FILES = (".onnx", ".pt2")
CODE_FORMS = "FILE.py:NAME, package.module:NAME, torchvision:NAME, timm:NAME, robustbench:NAME"


@dataclass(frozen=True)
class CodeFile:
    """The file that defines a network, as it was read. name: without its folder. sha256: of `data`."""

    name: str
    data: bytes

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Built:
    """A network that somebody else's code made.

    name: short, for tables and folders. spec: with the file's name alone. source: the file; None for a library.
    version: of the library. normalizes: whether what it does to images first is its own business; otherwise that must
    be given. check: compares it, on images (B, C, H, W), with what another program computes from the same file, and
    raises if that differs; None where there is no such file.
    """

    module: nn.Module
    name: str
    spec: str
    source: CodeFile | None = None
    version: str | None = None
    normalizes: bool = True
    check: Callable[[Tensor], None] | None = None


def is_program(spec: str) -> bool:
    """Return whether a name of an architecture is a file that holds a network: ONNX, or of torch.export."""
    return Path(spec).suffix in PROGRAM_FILES


def is_code(spec: str) -> bool:
    """Return whether a name of an architecture is a specification of somebody's code, or a file of a network."""
    return ":" in spec or is_program(spec)


def short_spec(spec: str) -> str:
    """The specification without the folder of its file: "nets/mynet.py:build" is "mynet.py:build"."""
    if is_program(spec):
        return Path(spec).name
    place, _, name = spec.rpartition(":")
    return f"{Path(place).name}:{name}" if place.endswith(".py") else spec


def build_code(spec: str, arguments: Mapping[str, Any], num_classes: int, *, seed: int = 0) -> Built:
    """Build a network, with fresh weights from `seed`, so that the same specification is the same network.

    Args:
        spec: see `CODE_FORMS`. arguments: passed by keyword to a class or a function.
        num_classes: for the networks of libraries, unless an argument says it.
    Raises: ConfigError in one line, with the line of the user's code if that fails.
    """
    import torch

    place, _, name = spec.rpartition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if place in LIBRARIES:
            module = LIBRARIES[place](name, {"num_classes": num_classes, **arguments})
            return Built(module, f"{place}-{name}", spec, version=_version(place), normalizes=place in NORMALIZING)
        if not place or not name.isidentifier():
            raise ConfigError(f"--model {shortened(spec)} names no network; give {CODE_FORMS}")
        found, source, file = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
        module = _made(found, name, spec, arguments, file)
    label = Path(place).stem if place.endswith(".py") else place
    return Built(module, f"{label}-{name}", short_spec(spec), source)


def _version(library: str) -> str:
    found = getattr(importlib.import_module(library), "__version__", None)
    return str(found or importlib.metadata.version(library))


def _from_file(path: Path) -> tuple[ModuleType, CodeFile, Path]:
    """Run a file as a module; what lies beside it can be imported from it."""
    if not path.is_file():
        raise ConfigError(f"--model {path}: there is no such file; give {CODE_FORMS}{close_name(path)}")
    path = path.resolve()
    source = CodeFile(path.name, read_bytes(path, CODE_BYTES))
    _importable(path.parent)
    module = ModuleType(f"hydrabench_model_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where torch and pickle look classes up
    run = lambda: exec(compile(source.data, str(path), "exec"), module.__dict__)  # noqa: E731
    _running(run, f"--model {path.name}", path)
    return module, source, path


def _from_package(name: str) -> tuple[ModuleType, CodeFile | None, Path | None]:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"--model {shortened(name)} is neither a file *.py nor a package; give {CODE_FORMS}")
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
    if file is None:
        return module, None, None
    return module, CodeFile(Path(file).name, read_bytes(Path(file), CODE_BYTES)), Path(file)


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _made(module: ModuleType, name: str, spec: str, given: Mapping[str, Any], file: Path | None) -> nn.Module:
    """The network that NAME is, or that calling it returns."""
    from torch import nn

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


def _torchvision(name: str, given: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise ConfigError(f"torchvision has no network {shortened(name)}; see torchvision.models.list_models()")
    return _running(lambda: models.get_model(name, weights=None, **given), f"--model torchvision:{name}", None)  # type: ignore[no-any-return]


def _timm(name: str, given: Mapping[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"--model timm:{name} needs timm, which is not installed; `pip install timm`") from error
    if not timm.is_model(name):
        raise ConfigError(f"timm has no network {shortened(name)}; see timm.list_models()")
    return _running(lambda: timm.create_model(name, pretrained=False, **given), f"--model timm:{name}", None)  # type: ignore[no-any-return]


def _robustbench(name: str, given: Mapping[str, Any]) -> nn.Module:
    """A network of RobustBench's zoo with its trained weights, which the library keeps in our cache folder.

    given: `dataset`, and `threat_model`: Linf, L2 or corruptions; "Linf" if it is not said.
    """
    try:
        from robustbench.utils import load_model
    except ImportError as error:
        raise ConfigError(
            f"--model robustbench:{name} needs robustbench ({error}); install it with `pip install robustbench`"
        ) from error
    known = {"threat_model": "Linf", **given}
    known.pop("num_classes", None)
    if known.get("dataset") not in ROBUSTBENCH_DATA or set(known) != {"dataset", "threat_model"}:
        raise ConfigError(
            f"--model robustbench:{name} takes --threat and the data set that it was trained on, one of "
            f"{', '.join(ROBUSTBENCH_DATA)}; for other images give that with --model-args dataset=cifar10"
        )
    folder = str(cache_folder() / "robustbench")
    what = f"--model robustbench:{name} ({known['dataset']}, {known['threat_model']})"
    return _running(lambda: load_model(model_name=name, model_dir=folder, **known), what, None)  # type: ignore[no-any-return]


ROBUSTBENCH_DATA = ("cifar10", "cifar100", "imagenet")
NORMALIZING = ("robustbench",)  # libraries whose networks take images in [0, 1] and normalise them themselves
LIBRARIES: dict[str, Callable[[str, Mapping[str, Any]], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "robustbench": _robustbench,
}
