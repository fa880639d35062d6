"""Checkpoint files and the zoo."""

from hydrabench.checkpoints.format import (
    Checkpoint,
    export_checkpoint,
    load_checkpoint,
    load_state,
    save_checkpoint,
    state_of,
)
from hydrabench.checkpoints.header import Header, Layout, PhaseLabel, Selection
from hydrabench.checkpoints.zoo import (
    ProtocolResult,
    ZooEntry,
    checkpoint_name,
    fetch,
    open_ref,
    read_manifest,
    resolve,
)

__all__ = [
    "Checkpoint",
    "Header",
    "Layout",
    "PhaseLabel",
    "ProtocolResult",
    "Selection",
    "ZooEntry",
    "checkpoint_name",
    "export_checkpoint",
    "fetch",
    "load_checkpoint",
    "load_state",
    "open_ref",
    "read_manifest",
    "resolve",
    "save_checkpoint",
    "state_of",
]
