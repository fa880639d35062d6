"""Certificates of an earlier run, so that attacks leave out the images on which none can succeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from hydrabench.data import ImageSource
from hydrabench.data.identity import identities
from hydrabench.errors import ConfigError, LedgerError
from hydrabench.evaluators import EVALUATORS, EvaluationSettings, record_of, recorded_settings
from hydrabench.files import sha256_of
from hydrabench.ledger import AttackRecord, RunFolder, read_run, whole_ledger
from hydrabench.selection import selected_indices
from hydrabench.threat import Threat, float_below
from hydrabench.workflows.evaluation.loading import Subject


@dataclass(frozen=True)
class Certificates:
    """The images that a finished run verifies, about the same network, in balls that cover those of the attack.

    name: what proved them, such as "crown-ibp@1 at L∞ 8/255". records_sha256: of its ledger.
    known: hash and label of each image that is spared some attack, by index.
    beyond: of those that are spared the smaller radii of a security curve alone, the settings of the others, by index.
    """

    name: str
    records_sha256: str
    known: Mapping[int, tuple[str, int]]
    beyond: Mapping[int, EvaluationSettings]

    def describe(self) -> dict[str, str]:
        """Return their entry in `run.json`."""
        return {"certificates": self.name, "records_sha256": self.records_sha256}

    def among(self, indices: Sequence[int]) -> list[int]:
        """Return those of these images that need no attack."""
        return [index for index in indices if index in self.known and index not in self.beyond]

    def in_part(self, indices: Sequence[int]) -> dict[EvaluationSettings, tuple[int, ...]]:
        """Return those of these images that need an attack at the larger radii, by the settings of these."""
        found: dict[EvaluationSettings, tuple[int, ...]] = {}
        for index in indices:
            if index in self.beyond:
                found[self.beyond[index]] = (*found.get(self.beyond[index], ()), index)
        return found

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
    asked: Any = settings
    there, here = run.header["checkpoint"]["sha256"], subject.checkpoint.sha256
    if there != here:
        raise LedgerError(f"{path} is about a network with SHA-256 {there[:16]}…, this one has {here[:16]}…")
    covered = Threat(proven.norm, proven.epsilon)
    _require_coverage(path, covered, settings)
    proved = _verified(run, proven, set(chosen))
    spared = {index: radius for index, (_, radius) in proved.items() if _spares(settings, radius)}
    known = {index: proved[index][0] for index in spared}
    _require_same_images(path, images, known)
    beyond = {index: asked.beyond(radius) for index, radius in spared.items() if radius < asked.epsilon}
    up_to = "up to" if getattr(proven, "search_radius", False) else "at"
    return Certificates(f"{proven.protocol} {up_to} {covered}", sha256_of(run.records_path), known, beyond)


def _require_coverage(path: Path, covered: Threat, settings: Any) -> None:
    """Raise ConfigError if no radius of an attack is covered, or not the largest where it cannot leave out others."""
    wanted = Threat(settings.norm, settings.epsilon)
    if covered.contains(wanted):
        return
    smaller = [radius for radius in getattr(settings, "epsilons", ()) if radius > 0]
    if not any(covered.contains(Threat(settings.norm, radius)) for radius in smaller):
        raise ConfigError(
            f"{path} verifies images at {covered}, which does not cover {wanted}; certify at {wanted} or more first"
        )
    if not settings.by_radius:
        raise ConfigError(
            f"{path} verifies images at {covered}, but {settings.kind} searches once for all radii up to {wanted}; "
            f"certify at {wanted} or more first, or leave out --skip-certified"
        )


def _spares(settings: Any, radius: Fraction) -> bool:
    """True if an image that is verified at `radius` need not be attacked at some radius of the settings."""
    by_radius = getattr(settings, "epsilons", ()) and settings.by_radius
    smallest = min(one for one in settings.epsilons if one > 0) if by_radius else settings.epsilon
    return bool(radius >= smallest)


def _verified(run: RunFolder, proven: Any, chosen: set[int]) -> dict[int, tuple[tuple[str, int], Fraction]]:
    """Hash and label of the chosen images, and the exact radius at which each is verified; 0 if it is at none."""
    records = whole_ledger(run, selected_indices(run.header["dataset"]), record_of(proven))
    return {
        line["index"]: ((line["input_sha"], line["label"]), _radius(line, proven))
        for line in records
        if line["index"] in chosen
    }


def _radius(line: Mapping[str, Any], proven: Any) -> Fraction:
    """Return the radius at which a record verifies its image; a searched one lies on the grid of the search."""
    if "verified_radius" not in line:
        return Fraction(proven.epsilon) if line["verified"] else Fraction(0)
    steps = 2**proven.halvings
    place = round(Fraction(line["verified_radius"]) * steps / proven.epsilon)
    radius = Fraction(proven.epsilon * place, steps)
    assert float_below(radius) == line["verified_radius"], "searched radii are multiples of epsilon / 2**halvings"
    return radius


def _require_same_images(path: Path, images: ImageSource, known: Mapping[int, tuple[str, int]]) -> None:
    """Raise LedgerError if a certificate is about other pixels or another label."""
    for (index, about), here in zip(known.items(), identities(images, list(known)), strict=True):
        if about != here:
            raise LedgerError(f"image {index} has other pixels or another label in {path} than here; certify it again")
