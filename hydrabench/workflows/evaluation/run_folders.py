"""Default run folders: different evaluations get different names. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydrabench.data.choosing import Choice
from hydrabench.evaluators import EvaluationSettings
from hydrabench.evaluators.smoothing_settings import radii_text

ALL = Choice()
LONGEST_NAME = 40  # characters of the indices in a folder name


def folders_of(
    runs: Sequence[EvaluationSettings], out: Path | None, *, name: str, precision: str, **chosen: Any
) -> list[Path]:
    """Return the folder of each run of one command.

    Args: out: the value of --out, which holds the folders of several runs. name, precision, chosen: as for
        `default_folder`, which decides where there is no --out.
    """
    if out is None:
        return [default_folder(name, settings, precision=precision, **chosen) for settings in runs]
    return [out] if len(runs) == 1 else [out / run_name(settings) for settings in runs]


def default_folder(
    name: str,
    settings: EvaluationSettings,
    *,
    precision: str = "float32",
    n: int | None = None,
    among: Choice = ALL,
    indices: Sequence[int] = (),
) -> Path:
    """runs/evaluations/CHECKPOINT/PROTOCOL-RADIUS, and the precision and the images if they are not float32 and all.

    Runs of images that were picked one by one lie under runs/images: a report on runs/evaluations would refuse them.

    Args: name: of the network. n, among, indices: as for `evaluation.evaluate`.
    """
    parts = [run_name(settings)]
    parts += [precision] if precision != "float32" else []
    parts += [f"n{n}"] if n is not None else []
    parts += [f"skip{among.step}"] if among.step != 1 else []
    parts += [f"ids-{among.ids.stem[:LONGEST_NAME]}"] if among.ids is not None else []
    parts += [f"index{_indices_text(sorted(set(indices)))}"] if indices else []
    return Path("runs") / ("images" if indices else "evaluations") / name / "-".join(parts)


def run_name(settings: EvaluationSettings) -> str:
    """A folder name that tells protocols and radii apart."""
    values = settings.model_dump(mode="json")
    parts = [settings.protocol.replace("@", "-v")]
    parts += [values["norm"]] if values.get("norm", "linf") != "linf" else []
    parts += [str(values["epsilon"]).replace("/", "_")] if "epsilon" in values else []
    parts += [f"sigma{values['sigma']:g}"] if "sigma" in values else []
    radii: tuple[float, ...] | None = getattr(settings, "radii", None)
    if radii is not None and radii != type(settings).model_fields["radii"].default:
        text = f"r{radii_text(radii)}"
        parts += [] if f"-{text}" in settings.protocol else [text]
    return "-".join(parts)


def _indices_text(indices: Sequence[int]) -> str:
    """Write [3, 17] as "3+17", and many as how many they are and a hash of them."""
    text = "+".join(map(str, indices))
    return text if len(text) <= LONGEST_NAME else f"{len(indices)}x{hashlib.sha256(text.encode()).hexdigest()[:8]}"
