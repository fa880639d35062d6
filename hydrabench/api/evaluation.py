"""The commands attack, certify and verify as functions, and `load`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from torch import nn

from hydrabench.api.networks import Network, as_normalization, subject_of
from hydrabench.api.runs import Run
from hydrabench.data.forms import is_given
from hydrabench.errors import ConfigError, lookup
from hydrabench.evaluators import EVALUATORS
from hydrabench.evaluators.precision import with_precision
from hydrabench.ledger import read_run
from hydrabench.selection import selected_indices
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.external import baked_copy
from hydrabench.workflows.evaluation.loading import Subject, settings_for
from hydrabench.workflows.opening import open_checkpoint
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.verifying import SAMPLE, verify_run


def load(
    ref: str | Path,
    *,
    arch: str | None = None,
    dataset: str | None = None,
    density: float | None = None,
    normalization: Any = None,
    model: str | nn.Module | None = None,
) -> nn.Module:
    """Load a network: eval mode, masks baked in, on the CPU; images (B, C, H, W) in [0, 1] to logits (B, K).

    What a checkpoint normalises is its first layer, so that radii are in pixel units.

    Args:
        ref: a checkpoint file (ours, or a .pt, .pth or .pth.tar of others), a run folder, or an id of the zoo.
        arch, dataset: of a file of others, what it does not say itself: keys of `models.MODELS` and `data.DATASETS`.
        density: of such a file, the fraction of weights kept, in (0, 1]; None: from its zeros.
        normalization: of such a file, a name ("cifar10", "none"), "MEAN/STD", or (means, deviations), in pixel units.
        model: FILE.py:NAME, the code of a checkpoint whose network is not of the registry, or a module of its layers;
            None: what lies beside it.
    Raises: CheckpointError or ConfigError if there is no such checkpoint, or it does not say what it is.
    """
    described = {"arch": arch, "dataset": dataset, "density": density, "model": model}
    described["normalization"] = as_normalization(normalization)
    if isinstance(model, nn.Module):
        described["model"] = baked_copy(model)
    given = {key: value for key, value in described.items() if value is not None}
    return open_checkpoint(str(ref), **given).baked()


@dataclass(frozen=True)
class _Request:
    """Arguments that attack and certify share; for the meaning of each see `attack`."""

    network: Network
    data: Any
    n: int | None
    out: str | Path | None
    resume: bool
    options: RunOptions
    precision: str
    name: str | None


def attack(
    network: Network,
    data: Any = None,
    attack: str = "pgd",
    epsilon: str | float | Fraction | None = None,
    *,
    n: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    precision: str = "float32",
    name: str | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    **settings: Any,
) -> Run:
    """Attack a network: robust accuracy, an upper bound on the truth.

    Args:
        network: a module, which stays as it is, a checkpoint or a zoo id; images (B, C, H, W) in [0, 1] to logits.
        data: a registered name ("cifar10"), (images, labels), or a torch Dataset, see `data.given_images`; None: the
            test images that the checkpoint was made for.
        attack: "clean", "pgd" or "autoattack". epsilon: radius in pixel units, such as "8/255" or 8/255; None: the one
            that the checkpoint was trained for.
        n: only the first n images, >= 1; None: all. out: the run folder; None: in memory. resume: continue `out`.
        device: "cpu", "cuda" or "cuda:N"; "auto": where a module is, for checkpoints the GPU if there is one.
        precision: "float32" or "float64"; for pgd and autoattack also "mixed", gradients in bfloat16. name: of the
            network in tables. data_dir, download: of registered data.
        settings: of the attack: steps, restarts, seed, norm="l2", ... .
    Raises: HydrabenchError, in one line, for whatever is not allowed or does not fit, before anything is written.
    """
    options = RunOptions(device, Path(data_dir) if data_dir else None, download)
    request = _Request(network, data, n, out, resume, options, precision, name)
    return _evaluate(request, "attack", {"kind": attack, "epsilon": epsilon, **settings})


def certify(
    network: Network,
    data: Any = None,
    method: str = "crown-ibp",
    epsilon: str | float | Fraction | None = None,
    *,
    n: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    precision: str = "float32",
    name: str | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    **settings: Any,
) -> Run:
    """Certify a network: verified or certified accuracy, a lower bound on the truth.

    Args:
        method: "ibp", "symbolic", "crown-ibp", "crown", "cascade", "alpha-crown", "exact", or "smoothing", which takes
            `sigma` in pixel units instead of `epsilon`.
        precision: "float32" or "float64"; for smoothing also "bfloat16".
        settings: of the method: norm="l2", rigor="sound", methods=[...], sigma, samples, batch, ... .
        The other arguments are those of `attack`.
    Raises: as `attack`; UnsupportedLayerError naming an operation that the bounds have no rule for.
    """
    options = RunOptions(device, Path(data_dir) if data_dir else None, download)
    request = _Request(network, data, n, out, resume, options, precision, name)
    return _evaluate(request, "certify", {"kind": method, "epsilon": epsilon, **settings})


def _evaluate(request: _Request, command: str, given: dict[str, Any]) -> Run:
    known = {kind: one for kind, one in EVALUATORS.items() if one.command == command}
    computed = {one.name for one in lookup(command, known, given["kind"]).options if one.role == "computing"}
    values = {key: _plain(value) for key, value in given.items() if value is not None and key not in computed}
    options = replace(request.options, computing={key: given[key] for key in given if key in computed})
    values, precision = with_precision(values, request.precision)
    if request.resume and request.out is None:
        raise ConfigError("resume continues the run in a folder; name it with out")
    subject = subject_of(
        request.network, request.data, options=options, precision=precision, name=request.name, n=request.n
    )
    settings = settings_for(subject, values)
    if request.out is not None:
        evaluate(subject, settings, Path(request.out), options=options, n=request.n, resume=request.resume)
        return Run(request.out)
    temporary = TemporaryDirectory(prefix="hydrabench-", ignore_cleanup_errors=True)
    evaluate(subject, settings, Path(temporary.name) / "run", options=options, n=request.n)
    return Run(Path(temporary.name) / "run", temporary=temporary)


def _plain(value: Any) -> Any:
    """A setting as the command line would have it, which checks a radius's range."""
    return f"{value.numerator}/{value.denominator}" if isinstance(value, Fraction) else value


def verify(
    run: Run | str | Path,
    network: Network | None = None,
    data: Any = None,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    device: str = "auto",
    data_dir: str | Path | None = None,
    download: bool = False,
) -> pd.DataFrame:
    """Compute a random sample of a run's records again, judge its stored adversarial images, say what is different.

    Args:
        run: of `attack` or `certify`. network: what it was made with; None: the checkpoint that it names, found by its
            hash. data: the images that it was made with, if they have no registered name.
        sample: how many records, >= 1. seed: of the sample. device, data_dir, download: as for `attack`.
    Returns: one row for each of these images, and for each whose stored adversarial image is none, indexed by position:
        `differences`, an empty text where there are none.
    Raises: LedgerError if the run was altered, CheckpointError if the network is not to be found or another.
    """
    folder = run.path if isinstance(run, Run) else Path(run)
    options = RunOptions(device, Path(data_dir) if data_dir else None, download)
    if network is None and data is not None:
        raise ConfigError("data alone does not say what was judged on it; give network, too")
    subject = None if network is None else _subject_again(folder, network, data, options)
    found = verify_run(folder, options=options, sample=sample, seed=seed, subject=subject)
    rows = {one.index: one.differences for one in found.records}
    for one in found.examples:
        if one.differences:
            rows[one.index] = (*rows.get(one.index, ()), *one.differences)
    texts = pd.DataFrame({"differences": ["; ".join(rows[index]) for index in sorted(rows)]}, index=sorted(rows))
    return texts.rename_axis("index")


def _subject_again(folder: Path, network: Network, data: Any, options: RunOptions) -> Subject:
    """Return what a run was made with: its precision and its name, and its data set where `data` is None."""
    header = read_run(folder).header
    about = header["dataset"]
    if data is None and is_given(about["name"]):
        raise ConfigError(f"{folder} is about images that were handed over; give them again as data")
    return subject_of(
        network,
        about["name"] if data is None else data,
        options=options,
        precision=header["precision"],
        name=header["checkpoint"]["name"],
        n=max(selected_indices(about)) + 1,
    )
