"""Settings of attacks on a ball, and the radii of a security curve: "1/255,2/255,4/255" or "0:16/255:1/255"."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, model_validator

from hydrabench.config import Radius
from hydrabench.evaluators.description import EvaluationSettings, Option
from hydrabench.threat import AttackNorm, radius_text, read_number

MOST_RADII = 1000

EPSILON = Option("epsilon", "Radius in pixel units, e.g. 8/255.", default="the checkpoint's training radius")
CURVE = Option(
    "epsilon",
    "Radius in pixel units, e.g. 8/255; several (1/255,2/255 or 0:16/255:1/255) make a security curve.",
    default="the checkpoint's training radius",
)
NORM = Option("norm", "linf or l2.", default="the checkpoint's, else linf")
NORMS = Option("norm", "linf or l2; of all but autoattack also l1.", default="the checkpoint's, else linf")
SKIP_CERTIFIED = Option(
    "skip_certified",
    "Attack no image that this run of certify verifies, at this radius or a larger one.",
    "folder",
    role="computing",
)
KEEP = Option("keep", "adversarial: store the adversarial image of every image that breaks, in RUN/adversarial.")
SEED = Option("seed", "Key of all random streams.", "int", default="0")


class KeepingSettings(EvaluationSettings):
    """Base of the settings of an attack.

    keep: what is stored beside the records. It changes no number: `run.json` names it beside the settings.
    """

    keep: Literal["adversarial"] | None = Field(default=None, exclude=True)


class BallSettings(KeepingSettings):
    """Base of the settings of an attack on a ball.

    epsilon: the radius, of a security curve the largest. epsilons: all radii of a security curve, in ascending order;
    empty for one radius.
    """

    norm: AttackNorm = "linf"
    epsilon: Radius
    epsilons: tuple[Radius, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_several(cls, values: Any) -> Any:
        """Cut a text of several radii up."""
        text = values.get("epsilon") if isinstance(values, dict) else None
        if not isinstance(text, str) or not {",", ":"} & set(text) or "epsilons" in values:
            return values
        radii = tuple(map(radius_text, read_radii(text)))
        return {**values, "epsilon": radii[-1], "epsilons": radii}

    def conflicts(self) -> Iterator[str]:
        """Yield what is wrong with a list of radii."""
        if self.epsilons and (list(self.epsilons) != sorted(set(self.epsilons)) or self.epsilon != self.epsilons[-1]):
            yield "epsilons: are in ascending order, each once, and the last is epsilon"

    @property
    def radii_text(self) -> str:
        """The radii of a security curve in its protocol id: verdicts depend on the smaller ones; "" if none."""
        if not self.epsilons:
            return ""
        step = self.epsilons[1] - self.epsilons[0] if len(self.epsilons) > 2 else None
        if step and all(later - one == step for one, later in zip(self.epsilons, self.epsilons[1:], strict=False)):
            text = f"{radius_text(self.epsilons[0])}to{radius_text(self.epsilon)}by{radius_text(step)}"
        else:
            text = "+".join(map(radius_text, self.epsilons))
        return f"-curve{text.replace('/', '_')}"

    def at(self, radius: Fraction) -> Any:
        """Return the same settings for one radius."""
        return self.model_copy(update={"epsilon": radius, "epsilons": ()})

    @property
    def radii_in_turn(self) -> tuple[Fraction, ...]:
        """The radii in ascending order."""
        return self.epsilons or (self.epsilon,)


def read_radii(text: str) -> tuple[Fraction, ...]:
    """Read "1/255,2/255" or FIRST:LAST:STEP, the last included, in ascending order.

    Raises: ValueError that says what to write; whether each is a radius of its norm is checked later.
    """
    parts = [part.strip() for part in text.split(":" if ":" in text else ",")]
    numbers = [read_number(part) for part in parts]
    if None in numbers:
        wrong = parts[numbers.index(None)]
        raise ValueError(f"epsilon: {wrong!r} in {text!r} is no radius; write 1/255,2/255,4/255 or 0:16/255:1/255")
    radii = [number for number in numbers if number is not None]
    if ":" in text:
        if len(radii) != 3 or radii[2] == 0 or radii[1] < radii[0]:
            raise ValueError(f"epsilon: {text!r} is no FIRST:LAST:STEP; write for example 0:16/255:1/255")
        first, last, step = radii
        count = (last - first) // step + 1
        if count > MOST_RADII:
            raise ValueError(
                f"epsilon: {text!r} has {count:,} radii, at most {MOST_RADII} are allowed; take a larger STEP"
            )
        radii = [first + step * number for number in range(count)]
    if len(set(radii)) < len(radii):
        raise ValueError(f"epsilon: {text!r} names one radius twice; name each once")
    return tuple(sorted(radii))
