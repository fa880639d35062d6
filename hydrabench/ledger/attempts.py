"""`attacks.jsonl`: what each attack of an ensemble did to each image, written as soon as a share of images is finished.

Records say what became of an image in the end; attempts say what is done already, so that a run that was killed goes on
with the attack and the image at which it stopped.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hydrabench.documents import parse_json
from hydrabench.errors import ConfigError, LedgerError
from hydrabench.files import write_text

ATTEMPTS_FILE = "attacks.jsonl"
AS_IT_IS = "clean"  # the attempt that every image starts with: it as it is


@dataclass(frozen=True)
class Attempt:
    """One attack on one image.

    image: its position in the data set's split. broken: whether a fresh forward pass misclassifies the point.
    loss: the largest other logit minus the true-class logit at the point that the attack returned, in the ball.
    prediction: the class of that point, None where the attack does not tell. seconds: the image's part of the time of
    its share; never compared.
    """

    image: int
    attack: str
    broken: bool
    loss: float
    prediction: int | None
    seconds: float


class AttemptLog:
    """The file of attempts in a run folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ATTEMPTS_FILE

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Add the attempts of one share in one write, and wait until they are on the disk."""
        with self.path.open("ab") as file:
            file.write(_text(attempts).encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self, attacks: Sequence[str]) -> list[Attempt]:
        """Return the attempts that are whole; a torn last line is cut off.

        Args: attacks: those of the run, in their order.
        Raises: LedgerError naming a line that cannot be.
        """
        if not self.path.exists():
            return []
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        lines = whole.decode(errors="replace").splitlines()
        return [self._parse(line, number, attacks) for number, line in enumerate(lines, start=1)]

    def replace(self, attempts: Sequence[Attempt]) -> None:
        """Put these attempts in the place of all that are there, at once."""
        write_text(self.path, _text(attempts))

    def _parse(self, line: str, number: int, attacks: Sequence[str]) -> Attempt:
        where = f"{self.path}, line {number},"
        remedy = f"remove {self.path.name}, and --resume attacks these images again"
        try:
            values = parse_json(line, f"{where} is not an attempt:")
        except ConfigError as error:
            raise LedgerError(f"{error}; {remedy}") from error
        for name, check in _CHECKS.items():
            if not isinstance(values, dict) or set(values) != set(_CHECKS) or not check(values[name]):
                raise LedgerError(f"{where} has no {name} that can be; {remedy}")
        if values["attack"] not in attacks:
            raise LedgerError(f"{where} is about {values['attack']!r}, the run has {', '.join(attacks)}; {remedy}")
        return Attempt(**values)


def _text(attempts: Sequence[Attempt]) -> str:
    return "".join(json.dumps(asdict(attempt), allow_nan=False) + "\n" for attempt in attempts)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "image": _is_whole,
    "attack": lambda value: isinstance(value, str),
    "broken": lambda value: isinstance(value, bool),
    "loss": _is_number,
    "prediction": lambda value: value is None or _is_whole(value),
    "seconds": lambda value: _is_number(value) and value >= 0,
}
assert set(_CHECKS) == {field.name for field in fields(Attempt)}
