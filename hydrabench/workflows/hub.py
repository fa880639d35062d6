"""A folder as repositories of the Hugging Face hub are laid out: weights, config.json, and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydrabench.checkpoints import Checkpoint, Header, ZooEntry, export_checkpoint
from hydrabench.checkpoints.hub import WEIGHTS
from hydrabench.evaluators import EVALUATORS, parse_settings
from hydrabench.files import json_text, write_text

ANY_REPOSITORY = "hf:ORG/REPO"  # what a card calls the repository, whose name is not known yet


def write_repository(checkpoint: Checkpoint, folder: Path, entry: ZooEntry | None) -> str:
    """Write a repository, whole or not at all, and return the SHA-256 of its weights.

    `model.safetensors` is a dense checkpoint of ours, header and normalisation included, that `--ckpt FOLDER` and
    `--ckpt hf:ORG/REPO` read. `config.json` holds the header.
    Args:
        folder: does not exist yet.
        entry: of the zoo, whose numbers the card then shows; None: it has no numbers to show.
    """
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        header = checkpoint.header.model_copy(update={"layout": "dense"})
        sha256 = export_checkpoint(checkpoint, scratch / WEIGHTS, "dense")
        config = {"library_name": "hydrabench", **header.model_dump(mode="json", by_alias=True, exclude_none=True)}
        write_text(scratch / "config.json", json_text(config))
        write_text(scratch / "README.md", model_card(header, sha256, entry))
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sha256


def model_card(header: Header, sha256: str, entry: ZooEntry | None) -> str:
    """Return the README of a repository: what the network is, how to open it, and its numbers with their commands."""
    licence = entry.licence if entry else "unknown"
    pruned = "not pruned" if header.density == 1 else f"{header.density:g} of the weights kept"
    trained = header.objective["name"] if header.objective else "unknown"
    extra = "" if entry is None else f"- Other images than the data set's: {'yes' if entry.additional_data else 'no'}\n"
    return (
        f"---\nlibrary_name: hydrabench\npipeline_tag: image-classification\ndatasets:\n- {header.dataset}\n"
        f"tags:\n- adversarial-robustness\n---\n\n# {entry.id if entry else header.arch}\n\n"
        f"- Architecture: {header.arch}, {pruned}\n- Data set: {header.dataset}, {header.num_classes} classes\n"
        f"- Objective: {trained}\n{extra}- Images: {' x '.join(map(str, header.shape))} in [0, 1]; "
        f"{'normalisation is part of the network' if header.normalization else 'no normalisation'}\n"
        f"- Licence: {licence}\n- SHA-256 of {WEIGHTS}: `{sha256}`\n\n"
        f"    hydrabench attack --ckpt {ANY_REPOSITORY}\n\n"
        f'    import hydrabench as hb\n    network = hb.load("{ANY_REPOSITORY}")\n'
        f"\n## Numbers\n\n{_numbers(entry)}"
    )


def _numbers(entry: ZooEntry | None) -> str:
    """A table of results of ours and, below, of published ones."""
    if entry is None or not (entry.results or entry.published):
        return "None were recorded with this checkpoint; make them with `hydrabench attack` and `hydrabench certify`.\n"
    lines = []
    if entry.results:
        lines += ["| number | protocol | images | value | command |", "|---|---|---|---|---|"]
        for result in entry.results:
            settings = parse_settings(result.settings, entry.id)
            evaluator = EVALUATORS[settings.kind]
            lines.append(
                f"| {evaluator.claims} | {settings.protocol}, {_condition(result.settings)} | {result.n} | "
                f"{100 * result.count / result.n:.1f}% | `{command(result.settings, result.n)}` |"
            )
        lines.append("")
    lines += [f"- {one.metric} {100 * one.value:.2f}%: {one.procedure} ({one.source})" for one in entry.published]
    return "\n".join(lines).rstrip() + "\n"


def _condition(settings: Mapping[str, Any]) -> str:
    norm = {"linf": "L∞", "l2": "L2", "l1": "L1"}.get(settings.get("norm", ""), "")
    return f"{norm} {settings['epsilon']}" if "epsilon" in settings else f"sigma {settings.get('sigma', 'none')}"


def command(settings: Mapping[str, Any], n: int, ref: str = ANY_REPOSITORY) -> str:
    """Return the command line that makes an evaluation with these settings on the first `n` images."""
    evaluator = EVALUATORS[settings["kind"]]
    chooser = "--attack" if evaluator.command == "attack" else "--method"
    words = ["hydrabench", evaluator.command, "--ckpt", ref, chooser, settings["kind"], *_options(settings)]
    return " ".join([*words, "-n", str(n)])


def _options(settings: Mapping[str, Any]) -> Iterator[str]:
    """The options for settings that are not the default ones."""
    evaluator = EVALUATORS[settings["kind"]]
    fields = evaluator.settings.model_fields
    for option in evaluator.options:
        key = option.setting or option.name
        if option.sets is not None or option.role != "setting" or key not in settings or key not in fields:
            continue
        value = settings[key]
        default = fields[key].get_default(call_default_factory=True)
        same = [*value] == [*default] if isinstance(value, list) and default else value == default
        if value is None or same:
            continue
        yield from (option.flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
