"""hydrabench: train, prune, attack, certify and compare robust image classifiers.

`import hydrabench as hb` takes a few milliseconds: what stands in `__all__` is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrabench import bounds, masking
    from hydrabench.api import (
        Gate,
        Report,
        Run,
        TrainingRun,
        attack,
        baseline,
        certify,
        finetune,
        gate,
        load,
        pipeline,
        prune,
        report,
        train,
        verify,
    )
    from hydrabench.errors import HydrabenchError

__version__ = "0.2.0"

__all__ = [
    "Gate",
    "HydrabenchError",
    "Report",
    "Run",
    "TrainingRun",
    "attack",
    "baseline",
    "bounds",
    "certify",
    "finetune",
    "gate",
    "load",
    "masking",
    "pipeline",
    "prune",
    "report",
    "train",
    "verify",
]
_ELSEWHERE = {"HydrabenchError": "hydrabench.errors"}  # all other names but those of packages are in hydrabench.api
_PACKAGES = ("bounds", "masking")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _PACKAGES:
        return import_module(f"hydrabench.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'hydrabench' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_ELSEWHERE.get(name, "hydrabench.api")), name)


def __dir__() -> list[str]:
    """Name what can be used."""
    return [*__all__, "__version__"]
