"""Checkpoints of the Hugging Face hub, by `hf:ORG/REPO` or `hf:ORG/REPO/FILE`; its library fetches and keeps them."""

from __future__ import annotations

import re
from pathlib import Path

from hydrabench.checkpoints.header import shown
from hydrabench.errors import CheckpointError, ConfigError

PREFIX = "hf:"
WEIGHTS = "model.safetensors"  # what a repository of `zoo export --format hf` holds
_ADDRESS = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?", re.ASCII)


def is_on_hub(ref: str) -> bool:
    """Return whether a reference names a repository of the hub."""
    return ref.startswith(PREFIX)


def fetch_from_hub(ref: str) -> Path:
    """Return the file of a reference, fetched if it is not in the library's cache; without FILE that is `WEIGHTS`.

    Raises: ConfigError for text that is no such reference, or without huggingface_hub; CheckpointError if there is no
        such file, or it cannot be fetched.
    """
    found = _ADDRESS.fullmatch(ref.removeprefix(PREFIX))
    if found is None or ".." in ref:
        raise ConfigError(f"{shown(ref)} is no file of the hub; write hf:ORG/REPO or hf:ORG/REPO/FILE")
    try:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - may be missing
    except ImportError as error:
        raise ConfigError(
            f"{ref} needs huggingface_hub ({error}); install it with `pip install huggingface_hub`"
        ) from error
    repository, file = found[1], found[2] or WEIGHTS
    try:
        return Path(hf_hub_download(repo_id=repository, filename=file))
    except Exception as error:  # the library's and the network's own kinds
        hint = "" if found[2] else f"; name another file of it with hf:{repository}/FILE"
        raise CheckpointError(f"{ref}: {file} cannot be fetched ({shown(str(error), 160)}){hint}") from error
