"""The zoo: checkpoints named by id, checked by hash. Some come with hydrabench, others are fetched from the web."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from hydrabench.checkpoints.cache import fetch_remote
from hydrabench.checkpoints.download import Progress
from hydrabench.checkpoints.hub import PREFIX, WEIGHTS, fetch_from_hub, is_on_hub
from hydrabench.checkpoints.manifest import RELEASED, SHIPPED, ProtocolResult, ZooEntry, read_entries
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.files import close_name, sha256_of, shipped

__all__ = [
    "ProtocolResult",
    "ZooEntry",
    "checkpoint_name",
    "fetch",
    "find_entry",
    "read_manifest",
    "read_zoo",
    "resolve",
]


def read_manifest(folder: Path | None = None) -> dict[str, ZooEntry]:
    """Return the checkpoints that come with hydrabench by id. Raises: ConfigError if the manifest is not valid."""
    return read_entries((folder or shipped("zoo")) / SHIPPED)


def read_zoo(folder: Path | None = None) -> dict[str, ZooEntry]:
    """Return all checkpoints by id: those that come with hydrabench, then those released elsewhere.

    Raises: ConfigError if a manifest is not valid.
    """
    released = (folder or shipped("zoo")) / RELEASED
    return {**read_manifest(folder), **(read_entries(released) if released.is_file() else {})}


def find_entry(name: str) -> ZooEntry:
    """Return one entry. Raises: ConfigError with the ids that are most like `name` if there is none."""
    entries = read_zoo()
    if name in entries:
        return entries[name]
    close = " or ".join(map(repr, get_close_matches(name, entries, n=3)))
    hint = f"did you mean {close}? " if close else ""
    raise ConfigError(f"unknown checkpoint {name!r}; {hint}`hydrabench zoo list` shows all, and a path names any file")


def fetch(
    entry: ZooEntry, folder: Path | None = None, *, offline: bool = False, progress: Progress | None = None
) -> Path:
    """Return the file of a zoo entry after checking its hash; one on the web is fetched if it is not in the cache.

    Args:
        folder: where shipped files lie; the zoo that comes with hydrabench if None.
        offline: use what is here only; progress: told how far a download has come.
    Raises: CheckpointError if it is missing, cannot be fetched, or its bytes are not the expected ones.
    """
    if entry.file is None:
        return fetch_remote(entry, offline=offline, progress=progress)[0]
    path = (folder or shipped("zoo")) / entry.file
    if not path.is_file():
        raise CheckpointError(f"zoo checkpoint {entry.id} should lie at {path}; install hydrabench again")
    found = sha256_of(path)
    if found != entry.sha256:
        raise CheckpointError(
            f"zoo checkpoint {entry.id} has SHA-256 {found[:16]}…, the manifest says {str(entry.sha256)[:16]}…; "
            "its file was changed or damaged, install hydrabench again"
        )
    return path


def resolve(ref: str, *, progress: Progress | None = None) -> Path:
    """Return the checkpoint file that `ref` names: a file, a run folder, a zoo id, or a repository (see `hub`).

    What is on the web is fetched first if need be. A folder may also be a repository's.

    Args: progress: told how far a download has come.
    Raises: CheckpointError if it is none of them, or cannot be fetched.
    """
    if is_on_hub(ref):
        return fetch_from_hub(ref)
    path = Path(ref)
    try:
        if path.is_dir():
            files = [path / "checkpoint.safetensors", path / WEIGHTS]
            found = next((file for file in files if file.is_file()), None)
            if found is None:
                raise CheckpointError(f"the folder {ref} holds no checkpoint.safetensors; has its run finished?")
            return found
        if path.is_file():
            return path
    except OSError as error:
        raise CheckpointError(f"no checkpoint at {ref[:200]} ({error.strerror})") from error
    if path.suffix or path.is_absolute() or ref.startswith("."):
        raise CheckpointError(f"no checkpoint at {ref}{close_name(path)}")
    return fetch(find_entry(ref), progress=progress)


def checkpoint_name(ref: str) -> str:
    """A short name for tables: the zoo id, or the last two parts of the path of the run folder or file."""
    path = Path(ref)
    if is_on_hub(ref):
        return ref.removeprefix(PREFIX)
    if not path.exists():
        return ref
    path = path.resolve()
    if path.name in ("checkpoint.safetensors", WEIGHTS):
        path = path.parent
    return "/".join(path.with_suffix("" if path.suffix == ".safetensors" else path.suffix).parts[-2:])
