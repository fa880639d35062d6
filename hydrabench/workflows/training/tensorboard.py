"""Metrics for TensorBoard, if it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hydrabench.errors import ConfigError

TENSORBOARD_FOLDER = "tensorboard"
Write = Callable[[int, Mapping[str, float]], None]


def require_tensorboard() -> None:
    """Raises: ConfigError if TensorBoard's writer cannot be imported."""
    try:
        import torch.utils.tensorboard  # noqa: F401, PLC0415 - heavy, and optional
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs the package tensorboard: pip install 'hydrabench[tensorboard]'"
        ) from error


@contextmanager
def scalars(folder: Path, *, first_step: int, wanted: bool) -> Iterator[Write]:
    """Write scalars under `folder`/tensorboard.

    Args:
        first_step: what an interrupted run wrote from this step on is discarded.
        wanted: False for one that writes nothing.
    Yields: `write(step, values)`.
    """
    if not wanted:
        yield _ignore
        return
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    writer = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=first_step)  # type: ignore[no-untyped-call]

    def write(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    try:
        yield write
    finally:
        writer.close()  # type: ignore[no-untyped-call]


def _ignore(step: int, values: Mapping[str, float]) -> None:
    """Write nothing."""
