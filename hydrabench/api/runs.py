"""Finished runs as a notebook shows them: the summary, and tables with one row for each image or epoch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import pandas as pd
import torch
from torch import Tensor, nn

from hydrabench.checkpoints import load_checkpoint
from hydrabench.errors import LedgerError
from hydrabench.evaluators import at, recorded_settings
from hydrabench.ledger import read_run
from hydrabench.reporting.statistics import metric_lines

EVALUATIONS = ("attack", "certify")


class _FinishedRun:
    """A run folder whose run has ended and whose files have the hashes that its summary says."""

    def __init__(self, path: str | Path, *, temporary: TemporaryDirectory[str] | None = None) -> None:
        """Read the folder of a finished run.

        Args:
            path: the run folder. temporary: a folder that holds it, removed when this object is.
        Raises: LedgerError if it holds no run, one that has not ended, or another kind, or files were altered.
        """
        self._run = read_run(Path(path))
        self._temporary = temporary
        self._require_kind()
        if not self._run.is_complete:
            raise LedgerError(f"{path} is not complete (status {self.header.get('status')!r}); continue it with resume")
        self._run.require_intact()

    def _require_kind(self) -> None:
        raise NotImplementedError

    @property
    def path(self) -> Path:
        """The run folder. One that was made in memory is removed with this object; `out` keeps a run."""
        return self._run.path

    @property
    def header(self) -> dict[str, Any]:
        """Return what `run.json` says: settings, protocol, network, images, versions."""
        return self._run.header

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` says: `n` and `metrics`, fractions in [0, 1] with 95 % intervals."""
        return self._run.summary()


class Run(_FinishedRun):
    """A finished run of `attack` or `certify`: `Run("runs/aa")` opens one that was made before."""

    def _require_kind(self) -> None:
        if self.header.get("command") not in EVALUATIONS:
            raise LedgerError(f"{self.path} is no run of attack or certify; a training run opens as TrainingRun(path)")

    @cached_property
    def records(self) -> pd.DataFrame:
        """One row for each image, indexed by its position in the data set.

        label, prediction: classes. Of attacks `robust`, `broken_by`, `step`, `margin` (logit units); of bounds
        `verified` and `lower` (a bound of the margin, logit units); of smoothing `radius` (L2, pixel units), `count`
        and more. seconds: the image's share of the time of its block.
        """
        return pd.DataFrame(list(self._run.records())).set_index("index")

    def adversarial(self) -> tuple[Tensor, Tensor]:
        """Return the adversarial images of a run with `keep="adversarial"`, or of method exact.

        Returns: the positions of their images in the data set, ascending, int64 (N,), and the pixels, (N, C, H, W), as
            the network saw them.
        Raises: LedgerError if the run keeps none.
        """
        if not self._run.keeps_examples:
            raise LedgerError(f"{self.path} keeps no adversarial images; attack again with keep='adversarial'")
        shards = [examples for _, examples in self._run.examples]
        indices = torch.tensor([index for one in shards for index in one.indices], dtype=torch.int64)
        pixels = [torch.from_numpy(one.pixels) for one in shards]
        order = indices.argsort()
        return indices[order], torch.cat(pixels)[order] if pixels else torch.empty(0)

    def __getitem__(self, metric: str) -> float:
        """The value of one metric of the summary, such as "robust_accuracy": a fraction in [0, 1], or a mean radius."""
        metrics = self.summary["metrics"]
        if metric not in metrics:
            raise KeyError(f"{metric!r}; this run has {', '.join(metrics)}")
        return float(metrics[metric]["value"])

    def __repr__(self) -> str:
        header = self.header
        settings = recorded_settings(header["settings"], header["protocol"])
        images = f"{self.summary['n']} images of {header['dataset']['name']}"
        where = "in memory" if self._temporary else f"in {self.path}"
        title = f"{header['protocol']} of {header['checkpoint']['name']}{at(settings)}, {images}, {where}"
        return "\n".join([title, *metric_lines(self.summary)])


class TrainingRun(_FinishedRun):
    """A finished run of `train`, `prune` or `finetune`: `TrainingRun("runs/dense")` opens one that was made before."""

    def __init__(self, path: str | Path, *, like: nn.Module | None = None) -> None:
        """Read the folder of a finished run.

        Args:
            path: the run folder. like: a module of its network's layers, whose weights do not matter, for a run that
                started from a module; None: the checkpoint says what its network is.
        Raises: LedgerError as for `Run`.
        """
        super().__init__(path)
        self.like = like

    def _require_kind(self) -> None:
        if self.header.get("command") in EVALUATIONS:
            raise LedgerError(f"{self.path} is a run of {self.header['command']}; it opens as Run(path)")

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """`metrics.csv`: one row for each epoch."""
        return pd.read_csv(self.path / "metrics.csv")

    @cached_property
    def module(self) -> nn.Module:
        """The network of the epoch that was kept: eval mode, pruned weights at zero, on the CPU; images to logits.

        Of a run that started from a module it is one of the same class.
        """
        return load_checkpoint(self.path / "checkpoint.safetensors", model=self.like).baked()

    def __repr__(self) -> str:
        recipe = self.header.get("recipe", {})
        name = recipe.get("name", "?") if isinstance(recipe, dict) else recipe
        return "\n".join([f"{self.header['command']} {name}, in {self.path}", *metric_lines(self.summary)])


Runs: TypeAlias = "Run | str | Path | Sequence[Run | str | Path]"


def folders_of(runs: Runs) -> list[Path]:
    """The folders of one or several runs, given as runs or as paths."""
    several = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    return [one.path if isinstance(one, Run) else Path(one) for one in several]
