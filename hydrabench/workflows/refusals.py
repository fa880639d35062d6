"""Refusals before torch is imported, so that the answer comes at once.

These are the checks that need no network and no image: paths, the header of a checkpoint, settings, names of devices.
Whatever passes here is checked again where it is used.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydrabench.checkpoints import Header, checkpoint_name, find_entry, peek
from hydrabench.checkpoints.manifest import ZooEntry
from hydrabench.checkpoints.zoo import fetch, resolve
from hydrabench.data.choosing import PICKED, Choice, choose, require_indices
from hydrabench.data.registry import DATASETS, data_folder, require_folder
from hydrabench.errors import ConfigError, LedgerError, lookup
from hydrabench.files import close_name
from hydrabench.ledger import find_run, interrupted, read_run
from hydrabench.workflows.evaluation.request import ModelRequest
from hydrabench.workflows.evaluation.run_folders import folders_of
from hydrabench.workflows.evaluation.settings import complete_settings

DEVICES = re.compile(r"auto|(cpu|cuda|mps|xpu|meta)(:\d{1,4})?")
PRECISIONS_OF = {"evaluation": ("float32", "float64", "bfloat16"), "training": ("float32", "bfloat16", "float16")}
LONGEST_ID = 200  # characters of an id of the zoo; a path may have more
RESULTS = "results.csv"  # of `vnncomp`
NAMED = ("imagenet",)  # data sets whose images have names; --ids may list these


@dataclass(frozen=True)
class _Published:
    """The test images of a data set as published, for `choose`."""

    name: str
    count: int
    split: str = "test"

    def __len__(self) -> int:
        return self.count


def refuse_machine(given: Mapping[str, Any], use: str) -> None:
    """Refuse a device that no machine has, a precision that is none, and a data folder that is not there.

    Args: given: the options of a command. use: a key of `PRECISIONS_OF`.
    Raises: ConfigError or DataError.
    """
    if not DEVICES.fullmatch(given["device"]):
        raise ConfigError(f"device {given['device']!r} is not available here; choose cpu, cuda or cuda:N")
    if "precision" in given:
        lookup("precision", dict.fromkeys(PRECISIONS_OF[use]), given["precision"])
    require_folder(data_folder(given["data_dir"]), download=given["download"])


def refuse_folder(out: Path | None, *, resume: bool) -> None:
    """Refuse a run folder that is in use, or cannot be made. Raises: LedgerError or OSError."""
    if out is not None:
        find_run(out, resume=resume)
        require_place(out)


def refuse_files(out: Path, *, resume: bool) -> None:
    """Refuse a folder that holds files and is not to be gone on with. Raises: LedgerError."""
    if not resume and any(out.glob("[!.]*")):
        raise LedgerError(f"{out} already holds files; continue with --resume or choose a new --out")


def refuse_results(path: Path, *, resume: bool) -> None:
    """Refuse a file of results that is there and is not to be gone on with. Raises: LedgerError."""
    if path.exists() and not resume:
        raise LedgerError(f"{path} is there already; add --resume to go on with it, or choose a new --out")


def require_free(out: Path) -> None:
    """Raise LedgerError for a file that is there already."""
    if out.exists():
        raise LedgerError(f"{out} exists already; choose another --out")


def refuse_export(folder: Path, *, but: frozenset[str] = frozenset()) -> None:
    """Refuse a folder of --export-vnnlib that holds something, unless an export that was killed left it so.

    Args: but: what it may hold all the same. Raises: LedgerError.
    """
    if not but and interrupted(folder):
        return
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.glob("[!.]*")} - but):
        raise LedgerError(f"{folder} already holds something; choose a new folder for --export-vnnlib, or leave it out")


def require_place(path: Path) -> None:
    """Raise OSError for a path that cannot be made because a part of it is a file, or too long, or a loop."""
    for part in (path, *path.parents):
        try:
            part.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if part != path and not part.stat().st_mode & 0o040000:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(part))
        return


def header_of(ref: str) -> Header | None:
    """Return the header of a checkpoint of ours; None for one of others, or one that is still to be fetched.

    Raises: ConfigError or CheckpointError if there is none, as `resolve` and `load_checkpoint`.
    """
    if ":" in ref and not os.path.exists(ref):  # an address
        return None
    path = Path(ref)
    if path.suffix or path.is_absolute() or ref.startswith(".") or len(ref) > LONGEST_ID or path.exists():
        return peek(resolve(ref))
    entry: ZooEntry = find_entry(ref)
    return None if entry.file is None else peek(fetch(entry))


def refuse_model(request: ModelRequest) -> None:
    """Refuse a file of --model or --weights that is not there. Raises: ConfigError."""
    place = request.spec.rpartition(":")[0] or request.spec
    if Path(place).suffix in (".py", ".pt2", ".onnx") and not Path(place).is_file():
        raise ConfigError(f"--model {place}: there is no such file{close_name(Path(place))}")
    if request.weights is not None and not request.weights.is_file():
        raise ConfigError(f"--weights {request.weights}: there is no such file{close_name(request.weights)}")


def refuse_runs(ref: str, header: Header | None, runs: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> None:
    """Refuse settings that are wrong or lack a radius, and folders that are in use.

    Args: ref: the checkpoint, or the value of --model. header: None for a network of others. runs, given: as for
        `refuse_evaluation`.
    """
    name = checkpoint_name(ref) if header else ref
    settings = [complete_settings(name, header, run) for run in runs]
    if header is None and given["out"] is None:
        return  # the name of its folder is not known before it is opened
    among = Choice(step=given["skip"], ids=given["ids"])
    chosen = {"n": given["n"], "among": among, "indices": given.get("indices", ())}
    for folder in folders_of(settings, given["out"], name=name, precision=given["precision"], **chosen):
        find_run(folder, resume=given["resume"])


def refuse_evaluation(
    ref: str, runs: Sequence[Mapping[str, Any]], given: Mapping[str, Any], dataset: str | None = None
) -> None:
    """Refuse settings and a choice of images that do not fit a checkpoint of ours.

    Args: runs: settings of each run. given: the options of a command. dataset: the value of --dataset.
    Raises: HydrabenchError as the evaluation itself.
    """
    header = header_of(ref)
    if given.get("reuse") is not None:
        read_run(given["reuse"])
    elif header is not None or os.path.exists(ref):
        refuse_runs(ref, header, runs, given)
    if header is None or header.dataset not in DATASETS or dataset is not None:
        return
    images = _Published(header.dataset, DATASETS[header.dataset].test)
    choice, indices = Choice(given["n"], given["skip"], given["ids"]), given.get("indices", ())
    require_indices(images, indices)
    if indices and choice != Choice():
        raise ConfigError(PICKED)
    if choice.ids is None or header.dataset not in NAMED:
        choose(images, choice)
