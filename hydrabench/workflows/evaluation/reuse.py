"""A finished smoothing run of a parent network, opened so that a network made from it can reuse its certificates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydrabench.checkpoints import Checkpoint
from hydrabench.config import Normalization, parse
from hydrabench.data import ImageSource
from hydrabench.data.identity import identities
from hydrabench.errors import CheckpointError, ConfigError, HydrabenchError, LedgerError
from hydrabench.evaluators import ReuseSettings, SmoothingSettings, recorded_settings
from hydrabench.evaluators.reuse_settings import default_reuse_samples
from hydrabench.files import sha256_of
from hydrabench.ledger import RunFolder, read_run
from hydrabench.smoothing.forward import Forward
from hydrabench.threat import read_number
from hydrabench.workflows.opening import open_expected

TAKEN = ("n0", "samples", "label_aware", "mode")  # from the parent's run; options for them are refused
SHARED = ("sigma", "seed", "rigor")  # may be given, but must be the parent's


@dataclass(frozen=True)
class Parent:
    """run: the finished run. settings: those it was made with. records: by index. network: eval mode, masks baked."""

    run: RunFolder
    settings: SmoothingSettings
    records: Mapping[int, Mapping[str, Any]]
    checkpoint: Checkpoint
    network: nn.Module

    def describe(self) -> dict[str, str]:
        """Return the entry in `run.json` of the child: which certificates were reused."""
        about = self.run.header["checkpoint"]
        return {
            "checkpoint": about["name"],
            "sha256": about["sha256"],
            "records_sha256": sha256_of(self.run.records_path),
        }

    def selection(self, n: int | None, indices: Sequence[int]) -> tuple[int | None, Sequence[int]]:
        """Return the images that a child is certified on: the chosen ones, else those of the run."""
        if n is not None or indices:
            return n, indices
        of_run = self.run.header["dataset"]
        return (None, of_run["indices"]) if "indices" in of_run else (of_run["n"], ())

    def require_dataset(self, checkpoint: Checkpoint) -> None:
        """Refuse a child for other images. Raises: CheckpointError."""
        child, parent = checkpoint.header, self.checkpoint.header
        for what in ("dataset", "shape", "num_classes"):
            old, new = getattr(parent, what), getattr(child, what)
            if old != new:
                raise CheckpointError(
                    f"{self.run.path} is about a network with {what} {old}, this checkpoint has {what} {new}; reuse "
                    "needs the run of its own parent"
                )

    def forward(self) -> Forward:
        """The arithmetic that its ledger was computed in, and in which it votes again."""
        header = self.run.header
        switches = {one.name: bool(header.get(one.name, False)) for one in fields(Forward) if one.name != "precision"}
        return Forward(header["precision"], **switches)

    def require_noise(self, header: Mapping[str, Any]) -> None:
        """Refuse other noise, or images of another precision, than those of its ledger.

        Args: header: what `run.json` of the child says; bfloat16 adds noise in float32.
        Raises: LedgerError naming the difference.
        """
        for name in ("noise", "precision"):
            old, new = self.run.header.get(name, "cpu"), header[name]
            if old != new and (name == "noise" or "float64" in (old, new)):
                raise LedgerError(
                    f"{self.run.path} was made with {name} {old}, this run would have {new}, and only equal draws can "
                    f"be reused; choose --{name} as there, or certify the parent again"
                )

    def require_images(self, images: ImageSource, chosen: Sequence[int]) -> None:
        """Refuse images that the parent's ledger does not hold, or holds with other pixels or another label.

        Raises: LedgerError naming the first.
        """
        strangers = [index for index in chosen if index not in self.records]
        if strangers:
            raise LedgerError(
                f"{self.run.path} has no record of image {strangers[0]} ({len(strangers)} of {len(chosen)} images are "
                f"missing there); choose among its {len(self.records)} images with -n or --index"
            )
        for index, (sha, label) in zip(chosen, identities(images, chosen), strict=True):
            known = self.records[index]
            for what, old, new in (("pixels", known["input_sha"], sha), ("label", known["label"], label)):
                if old != new:
                    raise LedgerError(
                        f"image {index} has another {what if what == 'label' else 'content'} in {self.run.path} "
                        f"({str(old)[:12]}) than here ({str(new)[:12]}); use the data that the parent was "
                        "certified on"
                    )


def open_parent(path: Path, ref: str | None, *, device: torch.device, dtype: torch.dtype) -> Parent:
    """Read the run of a parent and load its network.

    Args:
        path: a finished run of `certify --method smoothing`. ref: the parent's checkpoint; None: the name in the run.
    Raises: LedgerError if the run cannot be used, CheckpointError if the checkpoint is not there or not that one.
    """
    run = read_run(path)
    settings = _parent_settings(run)
    run.require_intact()
    about = run.header["checkpoint"]
    front = about.get("normalization")
    expected: dict[str, Any] = {"arch": about["arch"], "dataset": about["dataset"]}
    expected["normalization"] = Normalization.model_validate(front) if front else "none"
    try:
        checkpoint = open_expected(ref or about["name"], expected)
    except HydrabenchError as error:
        if ref:
            raise
        raise CheckpointError(
            f"the parent's checkpoint, {about['name']!r} in {path}, is not to be found; name it with --parent REF"
        ) from error
    if checkpoint.sha256 != about["sha256"]:
        raise CheckpointError(
            f"{ref or about['name']} has SHA-256 {checkpoint.sha256[:16]}…, but {path} was made with "
            f"{about['sha256'][:16]}…; name that checkpoint with --parent REF"
        )
    records = {record["index"]: record for record in run.records()}
    network = checkpoint.baked().to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Parent(run, settings, records, checkpoint, network)


def _parent_settings(run: RunFolder) -> SmoothingSettings:
    """The settings of a run that can be reused. Raises: LedgerError."""
    kind = run.header.get("settings", {}).get("kind")
    if run.header.get("command") != "certify" or kind != "smoothing":
        raise LedgerError(f"{run.path} is no run of certify --method smoothing; --reuse needs one of the parent")
    if not run.is_complete:
        raise LedgerError(
            f"{run.path} is not complete (status {run.header.get('status')!r}); continue it with --resume first"
        )
    mode = run.header["settings"].get("mode", "cohen")
    if mode != "cohen":
        raise LedgerError(f"{run.path} has mode {mode}; reuse takes the certificates of a run of mode cohen")
    settings = recorded_settings(run.header["settings"], run.header["protocol"], str(run.path / "run.json"))
    assert isinstance(settings, SmoothingSettings)
    if settings.law != "gaussian" or settings.randomized:
        raise LedgerError(f"{run.path} has protocol {settings.protocol}; reuse takes plain Gaussian certificates")
    return settings


def reuse_settings(parent: Parent, values: Mapping[str, Any]) -> ReuseSettings:
    """Complete the options of the child with the settings of its parent's run, and check them.

    Args:
        values: what was given of alpha, radii, reuse_samples, and of what must be as in the parent's run.
    Raises: ConfigError naming an option that is wrong or contradicts the parent's run.
    """
    of_parent = parent.settings.model_dump(mode="json")
    for name in TAKEN:
        if name in values:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} means nothing with --reuse, which takes it from {parent.run.path}; leave it out"
            )
    for name in SHARED:
        if name in values and not _equal(values[name], of_parent[name]):
            raise ConfigError(
                f"--{name} {values[name]} is not that of {parent.run.path}, {of_parent[name]}, and reuse needs the "
                "same noise; leave it out"
            )
    own = {name: value for name, value in values.items() if name not in (*SHARED, "kind")}
    complete = {
        **{name: value for name, value in of_parent.items() if name not in ("mode", "label_aware")},
        "reuse_samples": default_reuse_samples(parent.settings.samples),
        **own,
    }
    return parse(ReuseSettings, complete, "reuse")


def _equal(given: object, known: object) -> bool:
    """Return whether an option, maybe still a text, has the value of the parent's run."""
    one, other = read_number(str(given)), read_number(str(known))
    return str(given) == str(known) if one is None or other is None else float(one) == float(other)
