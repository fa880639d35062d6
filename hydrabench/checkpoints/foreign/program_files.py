"""Networks that a file holds, without code of the user's: ONNX, torch.export and TorchScript."""

from __future__ import annotations

from pathlib import Path

from hydrabench.checkpoints.foreign.onnx_reader import read_onnx, whole_file
from hydrabench.checkpoints.foreign.programs import PROGRAMS
from hydrabench.errors import ConfigError
from hydrabench.files import close_name
from hydrabench.models.own_code import Built, CodeFile

ONNX = ".onnx"


def is_file_of_network(spec: str) -> bool:
    """Return whether a specification is a file of a kind that holds a network."""
    return Path(spec).suffix in (*PROGRAMS, ONNX)


def build_program(path: Path, shape: tuple[int, int, int]) -> Built:
    """Return the network of a file, with the weights in it.

    Args: shape: of the images, (C, H, W); an ONNX file may take them in another layout.
    Raises: ConfigError if there is no such file; CheckpointError as `read_onnx` and `programs`.
    """
    if not path.is_file():
        raise ConfigError(f"--model {path}: there is no such file{close_name(path)}")
    if path.suffix == ONNX:
        network = read_onnx(path, shape)
        module, check = network.for_images(shape), network.require_same_on_images
        return Built(module, path.name, path.name, CodeFile(path.name, whole_file(path)), check=check)
    return Built(PROGRAMS[path.suffix](path), path.name, path.name, CodeFile(path.name, path.read_bytes()))
