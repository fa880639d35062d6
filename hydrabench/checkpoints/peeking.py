"""The first bytes of a checkpoint file: its kind and, of ours, its header. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from hydrabench.checkpoints.header import Header, read_header, shown
from hydrabench.errors import CheckpointError
from hydrabench.files import close_name

METADATA_KEY = "hydrabench"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how the two formats of torch.save begin
_SUFFIXES = (".pt", ".pth", ".tar")
LARGEST_HEADER = 100_000_000  # bytes, as safetensors has it


def is_torch_file(path: Path) -> bool:
    """Return whether a file is torch's by its first bytes, or, if it is no safetensors file either, by its name."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        return False
    return head.startswith((_ZIP, _PICKLE)) or path.suffix in _SUFFIXES


def peek(path: Path) -> Header | None:
    """Return the header of one of our files, whose tensors are not read; None for a file of torch.save.

    Raises: CheckpointError if the file cannot be one of ours, as `load_checkpoint` has it.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}{close_name(path)}")
    if is_torch_file(path):
        return None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(LARGEST_HEADER, path.stat().st_size - 8):
            raise not_whole(path, "its header is longer than the file" if length else "its header is empty")
        text = file.read(length)
    try:
        metadata = json.loads(text).get("__metadata__") or {}
    except (ValueError, AttributeError, RecursionError) as error:
        raise not_whole(path, str(error)) from error
    return own_header(metadata, path)


def own_header(metadata: dict[str, str], path: Path) -> Header:
    """Return our header in the metadata of a safetensors file. Raises: CheckpointError if there is none."""
    if METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file without a hydrabench header; it names no architecture")
    return read_header(metadata[METADATA_KEY], str(path))


def not_whole(path: Path, why: str) -> CheckpointError:
    """Return the message about a file that is no safetensors file."""
    if path.suffix in (".onnx", ".pt2"):
        return CheckpointError(f"{path} holds a network and is no checkpoint; give --model {path} in place of --ckpt")
    return CheckpointError(
        f"{path} is not a whole safetensors file ({shown(why, 200)}); fetch or write it again, or, if it is a .pt or "
        ".pth file, convert it first"
    )
