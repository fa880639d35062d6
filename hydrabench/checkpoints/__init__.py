"""Checkpoint files and the zoo.

The names below `TYPE_CHECKING` need torch, which takes seconds to import; they are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hydrabench.checkpoints.header import BestEpoch, Header, HeldOut, Layout, PhaseLabel, PluginFile
from hydrabench.checkpoints.manifest import ProtocolResult, PublishedNumber, ZooEntry, json_schema
from hydrabench.checkpoints.peeking import is_torch_file, peek
from hydrabench.checkpoints.zoo import checkpoint_name, fetch, find_entry, read_manifest, read_zoo, resolve

if TYPE_CHECKING:
    from hydrabench.checkpoints.foreign.exports import EXPORTS, export_original, export_state_dict
    from hydrabench.checkpoints.foreign.importing import import_checkpoint
    from hydrabench.checkpoints.foreign.normalization import better_normalization, parse_normalization
    from hydrabench.checkpoints.foreign.onnx_file import export_onnx
    from hydrabench.checkpoints.foreign.own_normalization import own_normalization
    from hydrabench.checkpoints.format import (
        Checkpoint,
        compact_size,
        export_checkpoint,
        load_checkpoint,
        load_state,
        save_checkpoint,
        state_of,
        stored_state,
    )
    from hydrabench.checkpoints.opening import open_ref

__all__ = [
    "EXPORTS",
    "BestEpoch",
    "Checkpoint",
    "Header",
    "HeldOut",
    "Layout",
    "PhaseLabel",
    "PluginFile",
    "ProtocolResult",
    "PublishedNumber",
    "ZooEntry",
    "better_normalization",
    "checkpoint_name",
    "compact_size",
    "export_checkpoint",
    "export_onnx",
    "export_original",
    "export_state_dict",
    "fetch",
    "find_entry",
    "import_checkpoint",
    "is_torch_file",
    "json_schema",
    "load_checkpoint",
    "load_state",
    "open_ref",
    "own_normalization",
    "parse_normalization",
    "peek",
    "read_manifest",
    "read_zoo",
    "resolve",
    "save_checkpoint",
    "state_of",
    "stored_state",
]

_LATER = {
    "foreign.exports": ("EXPORTS", "export_original", "export_state_dict"),
    "foreign.importing": ("import_checkpoint",),
    "foreign.normalization": ("better_normalization", "parse_normalization"),
    "foreign.onnx_file": ("export_onnx",),
    "foreign.own_normalization": ("own_normalization",),
    "format": (
        "Checkpoint",
        "compact_size",
        "export_checkpoint",
        "load_checkpoint",
        "load_state",
        "save_checkpoint",
        "state_of",
        "stored_state",
    ),
    "opening": ("open_ref",),
}


def __getattr__(name: str) -> Any:
    """Import a name of `_LATER`."""
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
