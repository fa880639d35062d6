"""The commands attack and certify; their options are those that the evaluators declare, and the common ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hydrabench.cli.common import (
    FOLDER,
    REF_HELP,
    folder_options,
    foreign_options,
    image_options,
    machine_options,
    model_options,
    print_summary,
    read_network,
    read_run_options,
)
from hydrabench.cli.evaluators import (
    EvaluatorCommand,
    computing_of,
    evaluators_of,
    require_distinct,
    require_options,
    settings_of,
)
from hydrabench.cli.values import CHECKPOINT, Name
from hydrabench.errors import ConfigError, shortened

if TYPE_CHECKING:
    from hydrabench.evaluators import EvaluationSettings
    from hydrabench.workflows.evaluation.loading import Subject
    from hydrabench.workflows.evaluation.request import ModelRequest
    from hydrabench.workflows.run_options import RunOptions

MACHINE = {
    "A network of other code": ("arch", "dataset", "source_density", "normalization"),
    "Machine": ("device", "threads", "data_dir", "download"),
}
settings_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting that has no option of its own."
)


@click.command(
    cls=EvaluatorCommand,
    choice="attack",
    sections=MACHINE,
    short_help="Attack a network: an upper bound on robust accuracy.",
)
@click.option("--ckpt", "ref", type=CHECKPOINT, help=REF_HELP)
@model_options
@click.option("--attack", type=Name(lambda: evaluators_of("attack")), default="pgd", show_default=True)
@settings_option
@foreign_options
@image_options
@folder_options
@machine_options
def attack(ref: str | None, attack: str, **given: Any) -> None:
    """Attack a network: robust accuracy, an upper bound on the truth.

    \b
    Examples
      hydrabench attack --ckpt digits-trades-95
      hydrabench attack --ckpt runs/final --attack autoattack --epsilon 8/255 -n 200
      hydrabench attack --ckpt runs/final --attack autoattack --precision mixed --device cuda
      hydrabench attack --ckpt model_best.pth.tar --dataset svhn --source-density 0.1 --epsilon 8/255
      hydrabench attack --model mynet.py:build --weights mynet.pt --dataset cifar10 --epsilon 8/255
      hydrabench attack --ckpt runs/final --epsilon 8/255 --keep adversarial
      hydrabench attack --ckpt runs/imagenet --ids imagenet_test_image_ids.txt
      torchrun --nproc-per-node 2 -m hydrabench attack --ckpt runs/final --out runs/pgd
    """
    _evaluate(ref, "attack", attack, given)


@click.command(
    short_help="Certify a network: a lower bound on robust accuracy.",
    cls=EvaluatorCommand,
    choice="method",
    sections={"Files for other verifiers": ("export_vnnlib", "vnnlib_timeout"), **MACHINE},
)
@click.option("--ckpt", "ref", type=CHECKPOINT, help=REF_HELP)
@model_options
@click.option("--method", type=Name(lambda: evaluators_of("method")), default="crown-ibp", show_default=True)
@settings_option
@foreign_options
@image_options
@click.option("--index", "indices", multiple=True, help="Only these test images, e.g. 17 or 3,17; reports refuse them.")
@click.option("--export-vnnlib", type=FOLDER, help="New folder for ONNX and VNN-LIB files of the same images, too.")
@click.option("--vnnlib-timeout", type=float, help="Seconds for each of them in its instances.csv.  [default: 300]")
@folder_options
@machine_options
def certify(ref: str | None, method: str, **given: Any) -> None:
    """Certify a network: verified or certified accuracy, a lower bound on the truth.

    \b
    Examples
      hydrabench certify --ckpt digits-crown-ibp-99
      hydrabench certify --ckpt runs/final --method ibp --epsilon 2/255 -n 200
      hydrabench certify --model exported.pt2 --dataset folder:images/val --epsilon 2/255
      hydrabench certify --ckpt runs/final --method cascade --norm l2 --epsilon 0.25
      hydrabench certify --ckpt runs/final --method cascade --methods ibp,crown-ibp,crown,alpha-crown --iterations 20
      hydrabench certify --ckpt runs/final --method crown-ibp --rigor sound
      hydrabench certify --ckpt runs/final --method crown-ibp --engine auto_lirpa
      hydrabench certify --ckpt runs/final --method alpha-crown --iterations 50 --time-limit 30
      hydrabench certify --ckpt runs/final --method exact --max-subproblems 5000
      hydrabench certify --ckpt runs/final --method exact --engine milp --time-limit 60
      hydrabench certify --ckpt runs/final --method cascade --methods ibp,crown,exact --engine milp
      hydrabench certify --ckpt runs/final --method crown --search-radius --epsilon 16/255 --tolerance 1/2550
      hydrabench certify --ckpt runs/final --method smoothing --sigma 0.25 --samples 10000
      hydrabench certify --ckpt runs/final --method smoothing --sigma 0.25 --skip 20
      hydrabench certify --ckpt runs/final --method smoothing --mode adaptive --radii auto --sigma 0.25,0.5
      hydrabench certify --ckpt runs/final --method smoothing --mode adaptive --tolerance 0.02
      hydrabench certify --ckpt runs/final --method smoothing --law uniform --radii 0,0.5,1
      hydrabench certify --ckpt runs/final --method smoothing --index 17
      hydrabench certify --ckpt runs/final --method smoothing --precision bfloat16 --reuse runs/smoothing-in-float32
      hydrabench certify --ckpt runs/final --epsilon 2/255 -n 50 --export-vnnlib vnncomp

    A cascade runs each method only on the images that are still undecided, and none on images that the network
    misclassifies or that one step of an attack breaks. Bounds in float32 that rounding could have lifted above 0 are
    computed again in float64, those of auto_LiRPA too.

    --search-radius bisects between 0 and --epsilon for the largest radius of every image that the method verifies, and
    the smallest that is broken.

    --export-vnnlib first writes the network as ONNX, a VNN-LIB property of every image that it classifies right, and
    instances.csv, for any verifier of the VNN-COMP competition to judge; it needs `pip install 'hydrabench[onnx]'`.
    """
    _require_timeout(given["vnnlib_timeout"], given["export_vnnlib"])
    given["indices"] = _indices(given["indices"])
    _evaluate(ref, "method", method, given)


def _require_timeout(seconds: float | None, folder: Path | None) -> None:
    """Refuse a time limit for files that are not written, or one that is no positive number."""
    if seconds is not None and folder is None:
        raise ConfigError("--vnnlib-timeout says something about the files of --export-vnnlib; give that, too")
    if seconds is not None and not seconds > 0:
        raise ConfigError(f"--vnnlib-timeout is a number of seconds above 0, got {seconds:g}")


def _indices(texts: tuple[str, ...]) -> tuple[int, ...]:
    """The values of --index: repeated, or with commas."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or len(part) > 12]
    if wrong:
        raise ConfigError(
            f"--index {shortened(wrong[0])} is no position of a test image; write for example --index 3,17"
        )
    return tuple(map(int, parts))


def _evaluate(ref: str | None, choice: str, kind: str, given: dict[str, Any]) -> None:
    """Build the settings from the options that were given, fill in the checkpoint's threat, run."""
    require_options(choice, kind, given)
    from hydrabench.workflows import refusals

    described, request = read_network(given, ref)
    if request is not None and given.get("reuse") is not None:
        raise ConfigError("--reuse is for checkpoints, and --model is none; leave it out")
    runs, given["precision"] = _with_precision(settings_of(kind, given), given["precision"])
    refusals.refuse_machine(given, "evaluation")
    refusals.refuse_folder(given["out"] if len(runs) == 1 else None, resume=given["resume"])
    if given.get("export_vnnlib") is not None:
        refusals.refuse_export(given["export_vnnlib"])
    if request is not None:
        refusals.refuse_model(request)
        refusals.refuse_runs(request.spec, None, runs, given)
    elif ref is not None:
        refusals.refuse_evaluation(ref, runs, given, described.get("dataset"))
    from hydrabench.workflows.evaluation import reuse
    from hydrabench.workflows.evaluation.loading import settings_for, with_parent

    run_options = replace(read_run_options(given), computing=computing_of(kind, given))
    subject = _open(ref, described, request, options=run_options, precision=given["precision"])
    if given.get("reuse") is not None:
        subject = with_parent(subject, given["reuse"], given["parent"])
        assert subject.parent is not None
        if given["skip"] == 1 and given["ids"] is None:
            given["n"], given["indices"] = subject.parent.selection(given["n"], given["indices"])
        return _run(subject, [reuse.reuse_settings(subject.parent, run) for run in runs], run_options, given)
    settings = [settings_for(subject, run) for run in runs]
    require_distinct(kind, given, settings)
    return _run(subject, settings, run_options, given)


def _with_precision(runs: list[dict[str, Any]], precision: str) -> tuple[list[dict[str, Any]], str]:
    """Turn --precision mixed into the setting that it is."""
    from hydrabench.evaluators.precision import with_precision

    found = [with_precision(run, precision) for run in runs]
    return [values for values, _ in found], found[0][1]


def _open(
    ref: str | None,
    described: dict[str, Any],
    request: ModelRequest | None,
    *,
    options: RunOptions,
    precision: str,
) -> Subject:
    """Open the checkpoint or the network that is to be judged."""
    from hydrabench.workflows.evaluation.opening import open_model, open_on_own_images

    if request is not None:
        return open_model(request, options=options, precision=precision)
    assert ref is not None  # `read_network` demands one of the two
    return open_on_own_images(ref, options=options, precision=precision, described=described)


def _run(subject: Subject, runs: list[EvaluationSettings], run_options: RunOptions, given: dict[str, Any]) -> None:
    """Make one run of each of the settings and print the summaries."""
    from hydrabench.data import Choice
    from hydrabench.evaluators import at
    from hydrabench.ledger import find_run
    from hydrabench.runtime import World
    from hydrabench.workflows.evaluation.evaluate import evaluate
    from hydrabench.workflows.evaluation.run_folders import folders_of
    from hydrabench.workflows.progress import say
    from hydrabench.workflows.training.forward_pass import COMPILING

    among = Choice(step=given["skip"], ids=given["ids"])
    chosen = {"n": given["n"], "among": among, "indices": given.get("indices", ())}
    folders = folders_of(runs, given["out"], name=subject.name, precision=subject.precision, **chosen)
    # A folder in use is found now, not when its turn comes, hours later.
    World().on_main(lambda: [find_run(folder, resume=given["resume"]) for folder in folders])
    if given.get("export_vnnlib") is not None:
        _export_vnnlib(subject, runs[0], run_options, given)
    if given.get("compile") and World().is_main:
        say(COMPILING)
    summaries = {}
    for settings, out in zip(runs, folders, strict=True):
        summary = evaluate(subject, settings, out, options=run_options, **chosen, resume=given["resume"])
        summaries[str(out)] = summary
        if World().is_main and not (given["as_json"] and len(runs) > 1):
            images = "1 image" if summary["n"] == 1 else f"{summary['n']} images"
            title = f"{settings.protocol} of {subject.name}{at(settings)}, {images}, in {out}"
            print_summary(summary, given["as_json"], title)
    if World().is_main and given["as_json"] and len(runs) > 1:
        click.echo(json.dumps(summaries, indent=2))


def _export_vnnlib(
    subject: Subject, settings: EvaluationSettings, run_options: RunOptions, given: dict[str, Any]
) -> None:
    """Write the files of --export-vnnlib."""
    from hydrabench.data import Choice
    from hydrabench.workflows.evaluation.vnnlib import VERIFIER_TIMEOUT, export_vnnlib

    limit = VERIFIER_TIMEOUT if given["vnnlib_timeout"] is None else given["vnnlib_timeout"]
    chosen = {"among": Choice(given["n"], given["skip"], given["ids"]), "indices": given["indices"]}
    export_vnnlib(subject, settings, given["export_vnnlib"], options=run_options, **chosen, timeout=limit)
