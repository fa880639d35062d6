"""Certificates of an earlier run, so that attacks leave out the images on which none can succeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydrabench.data import ImageSource
from hydrabench.data.identity import identities
from hydrabench.errors import ConfigError, LedgerError
from hydrabench.evaluators import EVALUATORS, EvaluationSettings, record_of, recorded_settings
from hydrabench.files import sha256_of
from hydrabench.ledger import AttackRecord, read_run, whole_ledger
from hydrabench.selection import selected_indices
from hydrabench.threat import Threat
from hydrabench.workflows.evaluation.loading import Subject


@dataclass(frozen=True)
class Certificates:
    """The verified images of a finished run that speaks about the same network and a ball that covers the attack's.

    name: what proved them, such as "crown-ibp@1 at L∞ 8/255". records_sha256: of its ledger.
    known: hash and label of each verified image, by index.
    """

    name: str
    records_sha256: str
    known: Mapping[int, tuple[str, int]]

    def describe(self) -> dict[str, str]:
        """Return their entry in `run.json`."""
        return {"certificates": self.name, "records_sha256": self.records_sha256}

    def among(self, indices: Sequence[int]) -> list[int]:
        """Return those of these images that are certified."""
        return [index for index in indices if index in self.known]

    def record(self, index: int, settings: EvaluationSettings) -> AttackRecord:
        """The record of an image that needs no attack: right, and robust."""
        sha, label = self.known[index]
        kind = record_of(settings)
        assert issubclass(kind, AttackRecord)
        more: dict[str, Any] = {"distance": None} if "distance" in {one.name for one in fields(kind)} else {}
        return kind(
            index=index,
            input_sha=sha,
            label=label,
            prediction=label,
            seconds=0.0,
            robust=True,
            broken_by=None,
            step=None,
            margin=None,
            certified_by=self.name,
            **more,
        )


def open_certificates(
    path: Path, subject: Subject, settings: EvaluationSettings, images: ImageSource, chosen: Sequence[int]
) -> Certificates:
    """Read a run of `certify` whose verified images need no attack.

    Args: path: the run. subject, settings: of the attack. images, chosen: the images that are attacked.
    Raises: LedgerError or ConfigError if the run proves nothing about this network, this ball or these images.
    """
    if not EVALUATORS[settings.kind].by_image(settings):
        raise ConfigError(
            f"{settings.protocol} attacks whole blocks of images, so none can be left out; drop --skip-certified"
        )
    run = read_run(path)
    kind = str(run.header.get("settings", {}).get("kind"))
    if kind not in EVALUATORS or EVALUATORS[kind].claims != "lower":
        raise LedgerError(
            f"{path} is no run of certify that verifies images; --skip-certified needs one of this network"
        )
    if not run.is_complete:
        raise LedgerError(f"{path} is not complete; continue it with --resume first")
    run.require_intact()
    proven: Any = recorded_settings(run.header["settings"], run.header["protocol"], str(path / "run.json"))
    there, here = run.header["checkpoint"]["sha256"], subject.checkpoint.sha256
    if there != here:
        raise LedgerError(f"{path} is about a network with SHA-256 {there[:16]}…, this one has {here[:16]}…")
    asked: Any = settings
    covered, wanted = Threat(proven.norm, proven.epsilon), Threat(asked.norm, asked.epsilon)
    if not covered.contains(wanted):
        raise ConfigError(
            f"{path} verifies images at {covered}, which does not cover {wanted}; certify at {wanted} or more first"
        )
    return Certificates(
        f"{proven.protocol} at {covered}", sha256_of(run.records_path), _verified(path, images, set(chosen))
    )


def _verified(path: Path, images: ImageSource, chosen: set[int]) -> dict[int, tuple[str, int]]:
    """Hash and label of the verified images among the chosen ones. Raises: LedgerError if they are other images."""
    run = read_run(path)
    settings = recorded_settings(run.header["settings"], run.header["protocol"], str(path / "run.json"))
    records = whole_ledger(run, selected_indices(run.header["dataset"]), record_of(settings))
    found = {line["index"]: (line["input_sha"], line["label"]) for line in records if line["verified"]}
    found = {index: about for index, about in found.items() if index in chosen}
    for (index, about), here in zip(found.items(), identities(images, list(found)), strict=True):
        if about != here:
            raise LedgerError(f"image {index} has other pixels or another label in {path} than here; certify it again")
    return found
