"""Checkpoint files and the zoo."""

from hydrabench.checkpoints.foreign.exports import EXPORTS, export_original, export_state_dict
from hydrabench.checkpoints.foreign.importing import import_checkpoint
from hydrabench.checkpoints.foreign.normalization import better_normalization, parse_normalization
from hydrabench.checkpoints.foreign.onnx_file import export_onnx
from hydrabench.checkpoints.foreign.torch_files import is_torch_file
from hydrabench.checkpoints.format import (
    Checkpoint,
    export_checkpoint,
    load_checkpoint,
    load_state,
    save_checkpoint,
    state_of,
    stored_state,
)
from hydrabench.checkpoints.header import BestEpoch, Header, Layout, PhaseLabel, PluginFile
from hydrabench.checkpoints.manifest import ProtocolResult, PublishedNumber, ZooEntry, json_schema
from hydrabench.checkpoints.zoo import (
    checkpoint_name,
    fetch,
    find_entry,
    open_ref,
    read_manifest,
    read_zoo,
    resolve,
)

__all__ = [
    "EXPORTS",
    "BestEpoch",
    "Checkpoint",
    "Header",
    "Layout",
    "PhaseLabel",
    "PluginFile",
    "ProtocolResult",
    "PublishedNumber",
    "ZooEntry",
    "better_normalization",
    "checkpoint_name",
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
    "parse_normalization",
    "read_manifest",
    "read_zoo",
    "resolve",
    "save_checkpoint",
    "state_of",
    "stored_state",
]
