"""The state from which an interrupted run is resumed, and the table of its epochs."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydrabench.data import TrainingImages
from hydrabench.data.identity import training_fingerprint
from hydrabench.errors import LedgerError
from hydrabench.files import replacing, write_text
from hydrabench.ledger import RunFolder, open_run
from hydrabench.workflows.progress import say

STATE_FILE, METRICS_FILE = "resume.pt", "metrics.csv"


@dataclass
class Sums:
    """Sums over the current epoch so far.

    minibatches: finished ones.
    images: trained on; an image that is trained on twice counts twice.
    loss: sum over these images. correct: how many of them were classified correctly.
    lr, epsilon: of the last step.
    seconds: spent on training.
    """

    minibatches: int = 0
    images: int = 0
    loss: float = 0.0
    correct: int = 0
    lr: float = 0.0
    epsilon: float = 0.0
    seconds: float = 0.0


@dataclass
class Progressed:
    """The progress of a run: finished epochs, their metrics, the best of them, and the current one."""

    epochs: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_value: float = -1.0
    best_epoch: int = 0
    sums: Sums = field(default_factory=Sums)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Progressed:
        """Read what `asdict` wrote."""
        return cls(**{**values, "sums": Sums(**values["sums"])})


def open_training(out: Path, header: Mapping[str, Any], images: TrainingImages, *, resume: bool) -> RunFolder:
    """Start or continue a training run; a finished run that lost a file is trained again from the start.

    Args: header: what `run.json` says, but for the fingerprints of the images and the environment.
    Raises: LedgerError as `open_run`, also if the images are not those it was started with.
    """
    dataset = {**header["dataset"], "fingerprint": training_fingerprint(images)}
    run = open_run(out, {**header, "dataset": dataset}, resume=resume)
    if run.is_complete:
        run.require_intact()
    elif run.header["status"] == "complete":
        say(f"{out} was complete, but {' and '.join(run.lost())} is gone; it is trained again")
        run.reopen()
    return run


def note_environment(run: RunFolder, environment: Mapping[str, str], epochs: int) -> None:
    """Record the environment of the epochs after the first `epochs`, and print what changed."""
    if changes := run.note_environment(environment, first_epoch=epochs):
        say(f"{run.path} goes on with {', '.join(changes)}; its run.json says which epochs each made")


def write_state(folder: Path, state: dict[str, Any], done: Progressed) -> None:
    """Write the state first and the table after it: the table can be made again from the state."""
    with replacing(folder / STATE_FILE) as scratch:
        torch.save({**state, "done": asdict(done)}, scratch)
    write_metrics(folder, done)


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return what `write_state` wrote, on the CPU, or None if it has not yet.

    Raises: LedgerError if it is damaged.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    with resuming(folder):
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state


@contextmanager
def resuming(folder: Path) -> Iterator[None]:
    """Turn errors in reading or restoring a state into a LedgerError that names its file."""
    try:
        yield
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise LedgerError(
            f"{folder / STATE_FILE} cannot be resumed from ({error}); delete the folder and start again"
        ) from error


def write_metrics(folder: Path, done: Progressed) -> None:
    """Write metrics.csv, one row per finished epoch, if there is one."""
    if not done.rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(done.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(done.rows)
    write_text(folder / METRICS_FILE, text.getvalue())
