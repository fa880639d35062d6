"""Files that torch.save wrote: read as tensors and plain values only, never by running code from the file."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hydrabench.errors import CheckpointError
from hydrabench.files import replacing, sha256_of

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how the formats of torch.save begin: since 1.6, and before
_SUFFIXES = (".pt", ".pth", ".tar")


def is_torch_file(path: Path) -> bool:
    """Whether a file is one of torch's by its first bytes, or, if it is no safetensors file either, by its name."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        return False
    return head.startswith((_ZIP, _PICKLE)) or path.suffix in _SUFFIXES


def read_torch_file(path: Path) -> Any:
    """Return what a file holds: tensors (on the CPU), numbers, strings, and containers of them.

    Raises: CheckpointError in one line if the file is missing, empty, a web page, a zip without weights,
        damaged, or could only be loaded by running code that it names.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    _check_kind(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes of the unpickler can be any exception
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name:
            raise CheckpointError(
                f"{path} can only be loaded by running code ({name[1]}), which is refused; where you trust it, "
                "save its state dict alone with torch.save"
            ) from error
        raise CheckpointError(
            f"{path} is no file of torch.save, or is damaged or cut short; fetch or write it again"
        ) from error


def write_torch_file(path: Path, values: Mapping[str, Any]) -> str:
    """Write `values` with torch.save, whole or not at all, and return the file's SHA-256.

    The same values give the same bytes.
    """
    buffer = io.BytesIO()  # given a path, torch.save would write the name of the scratch file into it
    torch.save(dict(values), buffer)
    with replacing(path) as scratch:
        scratch.write_bytes(buffer.getbuffer())
    return sha256_of(path)


def _check_kind(path: Path) -> None:
    """Name the files that are commonly found in place of weights."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path} is empty; fetch it again")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not weights: its link leads to one; fetch the file behind it")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith("/data.pkl") for name in names):
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise CheckpointError(f"{path} is a zip without weights (it holds {shown or 'nothing'}); unpack it first")
