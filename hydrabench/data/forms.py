"""How images of the user's own are named; `own_images` reads them."""

from __future__ import annotations

OWN_KINDS = ("folder", "npz", "parquet")
OWN_FORMS = "folder:DIR (one folder per class), npz:FILE (images, labels) or parquet:PATH (Hugging Face layout)"


def is_own(name: str) -> bool:
    """Whether a data set is named by where the user's own files are."""
    return name.partition(":")[0] in OWN_KINDS and ":" in name
