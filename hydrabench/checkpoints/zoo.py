"""The zoo: checkpoints that come with hydrabench, named by id, checked by hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter

from hydrabench.checkpoints.format import Checkpoint, load_checkpoint
from hydrabench.config import Density, EvaluationSettings, parse
from hydrabench.config.fields import Section
from hydrabench.errors import CheckpointError, lookup
from hydrabench.files import sha256_of, shipped

MANIFEST = "manifest.yml"


class ProtocolResult(Section):
    """One result of ours: `count` of the first `n` test images hold; `ledger` has one record per image."""

    settings: EvaluationSettings
    n: PositiveInt
    count: NonNegativeInt
    ledger: str


class ZooEntry(Section):
    """One checkpoint of the zoo. Paths are relative to the folder of the manifest."""

    id: str
    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: PositiveInt
    dataset: str
    arch: str
    objective: str
    density: Density
    parent: str | None = None
    recipe: str
    licence: str
    results: tuple[ProtocolResult, ...]


class Manifest(Section):
    """The list of checkpoints."""

    schema_version: Literal["hydrabench.zoo/1"]
    checkpoints: tuple[ZooEntry, ...]


def read_manifest(folder: Path | None = None) -> dict[str, ZooEntry]:
    """Return the zoo's entries by id. Raises: ConfigError if the manifest is not valid."""
    path = (folder or shipped("zoo")) / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"the zoo's manifest {path} is missing; install hydrabench again")
    values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    manifest = parse(TypeAdapter(Manifest), values, str(path))
    return {entry.id: entry for entry in manifest.checkpoints}


def fetch(entry: ZooEntry, folder: Path | None = None) -> Path:
    """Return the file of a zoo entry after checking its hash.

    Raises: CheckpointError if it is missing or its bytes are not those of the manifest.
    """
    path = (folder or shipped("zoo")) / entry.file
    if not path.is_file():
        raise CheckpointError(f"zoo checkpoint {entry.id} should lie at {path}; install hydrabench again")
    found = sha256_of(path)
    if found != entry.sha256:
        raise CheckpointError(
            f"zoo checkpoint {entry.id} has SHA-256 {found[:16]}…, the manifest says {entry.sha256[:16]}…; "
            "its file was changed or damaged, install hydrabench again"
        )
    return path


def resolve(ref: str) -> Path:
    """Return the checkpoint file that `ref` names: a file, a run folder, or a zoo id.

    Raises: CheckpointError if it is none of them.
    """
    path = Path(ref)
    if path.is_dir():
        path = path / "checkpoint.safetensors"
        if not path.is_file():
            raise CheckpointError(f"the folder {ref} holds no checkpoint.safetensors; has its run finished?")
        return path
    if path.is_file():
        return path
    if path.suffix or path.is_absolute() or ref.startswith("."):
        raise CheckpointError(f"no checkpoint at {ref}")
    return fetch(lookup("checkpoint", read_manifest(), ref))


def checkpoint_name(ref: str) -> str:
    """A short name for tables: the zoo id, or the last two parts of the path of the run folder or file."""
    path = Path(ref)
    if not path.exists():
        return ref
    path = path.resolve()
    if path.name == "checkpoint.safetensors":
        path = path.parent
    return "/".join(path.with_suffix("" if path.suffix == ".safetensors" else path.suffix).parts[-2:])


def open_ref(ref: str) -> Checkpoint:
    """Resolve and load. Raises: CheckpointError or ConfigError as `resolve` and `load_checkpoint` do."""
    return load_checkpoint(resolve(ref))
