"""The options around --model, in the words of the command line. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydrabench.config import Normalization


@dataclass(frozen=True)
class ModelRequest:
    """A network of the user's own in the words of the command line.

    spec: see `specifications.build`. arguments: KEY=VALUE. weights: a file of tensors, None for those that it comes
    with. dataset: see `data.load_images`. normalization: put in front of it; None: nothing was said. threat: which list
    of RobustBench's zoo it is on.
    """

    spec: str
    arguments: tuple[str, ...] = ()
    weights: Path | None = None
    dataset: str | None = None
    normalization: Normalization | Literal["none"] | None = None
    threat: str | None = None

    def __str__(self) -> str:
        return self.spec


def request_of(given: Mapping[str, Any], normalization: Any, dataset: str | None) -> ModelRequest | None:
    """The network of --model, --model-args and --weights; None if --model was not given."""
    if given["model"] is None:
        return None
    return ModelRequest(
        given["model"], tuple(given["model_args"]), given["weights"], dataset, normalization, given["threat"]
    )
