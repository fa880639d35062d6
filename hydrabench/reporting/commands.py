"""The command that makes a number again, as one types it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from hydrabench.evaluators import EVALUATORS
from hydrabench.evaluators.precision import MIXED
from hydrabench.reporting.evaluations import IMPORTED, Evaluation
from hydrabench.selection import selection_name

CHOICES = {"attack": "--attack", "certify": "--method"}
ALWAYS = ("norm", "epsilon", "sigma")  # their defaults depend on the checkpoint
NEVER = ("kind", "version", "mode", MIXED)


def command_of(evaluation: Evaluation, index: int | None = None) -> str:
    """Return the command of a run: "hydrabench attack --ckpt digits-trades --attack pgd --epsilon 8/255 -n 500".

    Args: index: of an image that is to be judged, instead of all.
    Returns: "" for what was imported from another tool's file.
    """
    if evaluation.precision == IMPORTED:
        return ""
    evaluator = evaluation.evaluator
    words = ["hydrabench", evaluator.command, "--ckpt", evaluation.checkpoint.name]
    words += [CHOICES[evaluator.command], evaluation.kind, *_settings(evaluation)]
    words += _images(evaluation, index)
    precision = MIXED if evaluation.settings.get(MIXED) else evaluation.precision
    words += ["--precision", precision] if precision != "float32" else []
    return shlex.join(words)


def _settings(evaluation: Evaluation) -> Iterator[str]:
    """Yield the options of all settings that are not the default."""
    flags = {
        option.setting or option.name: option.flag
        for evaluator in (*EVALUATORS.values(), evaluation.evaluator)
        for option in evaluator.options
        if option.role == "setting" and option.sets is None
    }
    given, default = evaluation.settings, _defaults(evaluation)
    if given.get("mode") == "predict":
        yield "--predict"
    elif given.get("mode", default.get("mode")) != default.get("mode"):
        yield from ("--mode", str(given["mode"]))
    for name, value in given.items():
        if name in NEVER or value is None or (name not in ALWAYS and value == default.get(name)):
            continue
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if value is True and name in flags:
            yield flags[name]
        else:
            yield from (flags[name], text) if name in flags else ("--set", f"{name}={text}")


def _defaults(evaluation: Evaluation) -> dict[str, Any]:
    """Return the defaults of all settings that have one, as JSON has them."""
    fields = evaluation.evaluator.settings.model_fields
    found = {name: one.get_default(call_default_factory=True) for name, one in fields.items() if not one.is_required()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _images(evaluation: Evaluation, index: int | None) -> list[str]:
    """Return the options that choose the images; `attack` cannot judge one alone, but those up to it."""
    if index is not None:
        return ["--index", str(index)] if evaluation.evaluator.command == "certify" else ["-n", str(index + 1)]
    indices = evaluation.fields["index"].tolist()
    name = selection_name(indices)
    if name.startswith("1 in ") and indices[0] == 0:
        return ["--skip", str(indices[1] - indices[0]), "-n", str(len(indices))]
    return ["-n", str(len(indices))]
