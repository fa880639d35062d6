"""Architectures: plain torch.nn modules that know nothing about masks or phases.

The names below `TYPE_CHECKING` need torch, which takes seconds to import; they are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hydrabench.models.registry import MODELS, Architecture, build_model

if TYPE_CHECKING:
    from hydrabench.models.normalize import Normalize, inner_network, normalized

__all__ = ["MODELS", "Architecture", "Normalize", "build_model", "inner_network", "normalized"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.normalize"), name)
