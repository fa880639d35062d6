"""Checkpoint files and the zoo."""

from hydrabench.checkpoints.exports import EXPORTS, export_original, export_state_dict
from hydrabench.checkpoints.format import (
    Checkpoint,
    export_checkpoint,
    load_checkpoint,
    load_state,
    save_checkpoint,
    state_of,
)
from hydrabench.checkpoints.header import Header, Layout, PhaseLabel, PluginFile, Selection
from hydrabench.checkpoints.hydra import import_checkpoint
from hydrabench.checkpoints.legacy import infer_density, legacy_kept_count
from hydrabench.checkpoints.manifest import ProtocolResult, PublishedNumber, ZooEntry, json_schema
from hydrabench.checkpoints.onnx_file import export_onnx
from hydrabench.checkpoints.torch_files import is_torch_file
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
    "Checkpoint",
    "Header",
    "Layout",
    "PhaseLabel",
    "PluginFile",
    "ProtocolResult",
    "PublishedNumber",
    "Selection",
    "ZooEntry",
    "checkpoint_name",
    "export_checkpoint",
    "export_onnx",
    "export_original",
    "export_state_dict",
    "fetch",
    "find_entry",
    "import_checkpoint",
    "infer_density",
    "is_torch_file",
    "json_schema",
    "legacy_kept_count",
    "load_checkpoint",
    "load_state",
    "open_ref",
    "read_manifest",
    "read_zoo",
    "resolve",
    "save_checkpoint",
    "state_of",
]
