"""The names of images of the user's own; `own_images` reads them."""

from __future__ import annotations

GIVEN = "images-"  # how the names of images that were handed over begin, see `given`
OWN_PLACES = {
    "folder:DIR": "one folder per class",
    "npz:FILE": "images, labels",
    "parquet:PATH": "Hugging Face layout",
    "cifar10c:DIR/CORRUPTION/SEVERITY": "CIFAR-10-C, such as DIR/fog/3",
    "hf:ORG/NAME": "through the library datasets",
}
OWN_KINDS = tuple(form.partition(":")[0] for form in OWN_PLACES)
*_FIRST, CORRUPTED, _LAST = (f"{form} ({text})" for form, text in OWN_PLACES.items())
OWN_FORMS = f"{', '.join((*_FIRST, CORRUPTED))} or {_LAST}"


def is_own(name: str) -> bool:
    """Return whether a data set is named by where the user's own files are."""
    return name.partition(":")[0] in OWN_KINDS and ":" in name


def is_given(name: str) -> bool:
    """Return whether images were handed over by a caller and not found by a name."""
    return name.startswith(GIVEN)
