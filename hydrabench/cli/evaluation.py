"""The commands attack and certify."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from hydrabench.cli.common import (
    FOLDER,
    REF_HELP,
    SectionedCommand,
    image_options,
    machine_options,
    options,
    print_summary,
    read_machine,
    run_options,
)
from hydrabench.errors import ConfigError, lookup

if TYPE_CHECKING:
    from hydrabench.config import EvaluationSettings
    from hydrabench.workflows.machine import Machine
    from hydrabench.workflows.subject import Subject

NOISE = ("auto", "cpu", "device")
OF_REUSE = ("parent", "reuse_samples", "reuse_direct")


@click.command()
@click.option("--ckpt", "ref", required=True, help=REF_HELP)
@click.option("--attack", default="pgd", show_default=True, help="clean (no perturbation), pgd or autoattack.")
@click.option("--epsilon", help="Radius in pixel units, e.g. 8/255.  [default: the checkpoint's training radius]")
@click.option("--norm", help="linf or l2.  [default: the checkpoint's, else linf]")
@click.option("--steps", type=int, help="PGD steps.  [default: 50]")
@click.option("--restarts", type=int, help="PGD random starts for each loss.  [default: 1]")
@click.option("--seed", type=int, help="Key of all random streams.  [default: 0]")
@image_options
@run_options
@machine_options
def attack(ref: str, attack: str, **given: Any) -> None:
    """Attack a checkpoint: robust accuracy, an upper bound on the truth.

    \b
    Examples
      hydrabench attack --ckpt digits-trades-95
      hydrabench attack --ckpt runs/final --attack autoattack --epsilon 8/255 -n 200
      torchrun --nproc-per-node 2 -m hydrabench attack --ckpt runs/final --out runs/pgd
    """
    _evaluate(ref, attack, ("clean", "pgd", "autoattack"), ("epsilon", "norm", "steps", "restarts", "seed"), given)


METHODS = ("ibp", "symbolic", "crown-ibp", "crown", "alpha-crown", "cascade", "smoothing")
RIGOR = (
    "ibp, crown-ibp: standard, or sound: rounded outwards, or deployed: so that float32 inference cannot break it, "
    "either. Smoothing: standard, or discrete: integer noise, sound in floating point.  [default: standard]"
)
SECTIONS = {
    "Bounds": ("epsilon", "norm", "methods", "engine"),
    "alpha-crown": ("slopes", "iterations", "learning_rate", "time_limit"),
    "Files for other verifiers": ("export_vnnlib", "vnnlib_timeout"),
    "Smoothing": ("mode", "predict", "sigma", "n0", "samples", "alpha", "radii", "seed", "label_aware"),
    "Smoothing, how it is computed": ("batch", "noise", "compile", "channels_last", "fold_batch_norm"),
    "Smoothing, from the certificates of a parent network": ("reuse", "parent", "reuse_samples", "reuse_direct"),
    "Machine": ("device", "threads", "data_dir", "download"),
}
# The methods that an option is for, where that is not all of them.
FOR_METHODS = {
    **dict.fromkeys(("epsilon", "norm"), METHODS[:-1]),
    "methods": ("cascade",),
    "engine": ("ibp", "crown-ibp", "crown", "alpha-crown"),
    **dict.fromkeys(SECTIONS["alpha-crown"], ("alpha-crown", "cascade")),
    **{name: ("smoothing",) for title, names in SECTIONS.items() if "Smoothing" in title for name in names},
}
bound_options = options(
    click.option("--epsilon", help="Radius in pixel units, e.g. 2/255.  [default: the checkpoint's training radius]"),
    click.option("--norm", help="linf or l2.  [default: the checkpoint's, else linf]"),
    click.option("--methods", help="Cascade: in order; alpha-crown last.  [default: ibp,crown-ibp,crown]"),
    click.option("--engine", help="hydrabench, or auto_lirpa: a second opinion in L∞.  [default: hydrabench]"),
    click.option("--rigor", help=RIGOR),
    click.option("--slopes", help="Optimise those of the output, or all (slower).  [default: output]"),
    click.option("--iterations", type=int, help="Iterations of the search.  [default: 100]"),
    click.option("--learning-rate", type=float, help="Learning rate of the search.  [default: 0.1]"),
    click.option("--time-limit", type=float, help="Seconds for each image. Results then depend on the machine."),
    click.option("--export-vnnlib", type=FOLDER, help="New folder for ONNX and VNN-LIB files of the same images, too."),
    click.option("--vnnlib-timeout", type=float, help="Seconds for each of them in its instances.csv.  [default: 300]"),
)
smoothing_options = options(
    click.option("--mode", help="cohen, curtailed, adaptive or betting: when to stop.  [default: cohen]"),
    click.option("--predict", is_flag=True, help="Predict with abstention; certify no radius."),
    click.option(
        "--sigma",
        help="Noise in pixel units; 0.12,0.25: one run each.  [default: the training noise, or 0.25]",
    ),
    click.option("--n0", type=int, help="Selection samples.  [default: 100]"),
    click.option("--samples", type=int, help="Most estimation samples.  [default: 100000]"),
    click.option("--alpha", type=float, help="Failure probability of each certificate.  [default: 0.001]"),
    click.option("--radii", help="L2 radii, e.g. 0,0.25,0.5, or auto.  [default: 0,0.25,0.5,0.75]"),
    click.option("--seed", type=int, help="Key of all random streams.  [default: 0]"),
    click.option("--label-aware", is_flag=True, help="Draw no more if the selection is not the label."),
    click.option("--reuse", type=FOLDER, help="Derive certificates from this run of the parent network."),
    click.option("--parent", help="The parent's checkpoint.  [default: the name in its run]"),
    click.option("--reuse-samples", type=int, help="Most draws for both networks.  [default: 1/10 of --samples]"),
    click.option("--reuse-direct", is_flag=True, help="Certify directly too, where that falls short."),
    click.option("--batch", type=int, help="Noisy images in a forward pass.  [default: by their size]"),
    click.option("--noise", default="auto", show_default=True, help="Drawn on cpu, device or auto."),
    click.option("--compile", is_flag=True, help="Run the network through torch.compile."),
    click.option("--channels-last", is_flag=True, help="Memory format channels_last."),
    click.option("--fold-batch-norm", is_flag=True, help="Merge batch norms into convolutions."),
)


@click.command(cls=SectionedCommand, sections=SECTIONS)
@click.option("--ckpt", "ref", required=True, help=REF_HELP)
@click.option(
    "--method",
    default="crown-ibp",
    show_default=True,
    help="ibp, symbolic, crown-ibp, crown, alpha-crown, cascade or smoothing.",
)
@bound_options
@smoothing_options
@image_options
@click.option("--index", "indices", multiple=True, help="Only these test images, e.g. 17 or 3,17; reports refuse them.")
@run_options
@machine_options
def certify(ref: str, method: str, **given: Any) -> None:
    """Certify a checkpoint: verified or certified accuracy, a lower bound on the truth.

    \b
    Examples
      hydrabench certify --ckpt digits-crown-ibp-99
      hydrabench certify --ckpt runs/final --method ibp --epsilon 2/255 -n 200
      hydrabench certify --ckpt runs/final --method cascade --norm l2 --epsilon 0.25
      hydrabench certify --ckpt runs/final --method cascade --methods ibp,crown-ibp,crown,alpha-crown --iterations 20
      hydrabench certify --ckpt runs/final --method crown-ibp --rigor sound
      hydrabench certify --ckpt runs/final --method crown-ibp --engine auto_lirpa
      hydrabench certify --ckpt runs/final --method alpha-crown --iterations 50 --time-limit 30
      hydrabench certify --ckpt runs/final --method smoothing --sigma 0.25 --samples 10000
      hydrabench certify --ckpt runs/final --method smoothing --mode adaptive --radii auto --sigma 0.25,0.5
      hydrabench certify --ckpt runs/final --method smoothing --index 17
      hydrabench certify --ckpt runs/pruned --method smoothing --reuse runs/smoothing-of-dense --parent runs/dense
      hydrabench certify --ckpt runs/final --epsilon 2/255 -n 50 --export-vnnlib vnncomp

    A cascade asks each method only about the images that those before it left open, and none about images that the
    network misclassifies or that one step of an attack breaks. Bounds in float32 that rounding could have lifted
    above 0 are computed again in float64, those of auto_LiRPA too.

    --export-vnnlib first writes the network as ONNX, a VNN-LIB property of every image that it classifies right, and
    instances.csv, for any verifier of the VNN-COMP competition to judge; it needs `pip install 'hydrabench[onnx]'`.
    """
    lookup("method", dict.fromkeys(METHODS), method)
    _check_options(method, given)
    if given["vnnlib_timeout"] is not None and given["export_vnnlib"] is None:
        raise ConfigError("--vnnlib-timeout says something about the files of --export-vnnlib; give that, too")
    if given["radii"] is not None and given["radii"] != "auto":
        given["radii"] = given["radii"].split(",")
    given["label_aware"] = given["label_aware"] or None
    given["direct"] = given["reuse_direct"] or None
    if given["predict"]:
        given["mode"] = _only_predict(given)
    if given["methods"] is not None:
        given["methods"] = [name.strip() for name in given["methods"].split(",")]
    given["indices"] = _indices(given["indices"])
    of_bounds = ("epsilon", "norm", "methods", "engine", "rigor", "slopes", "iterations", "learning_rate", "time_limit")
    of_smoothing = ("mode", "sigma", "n0", "samples", "alpha", "radii", "seed", "label_aware")
    _evaluate(ref, method, METHODS, (*of_bounds, *of_smoothing, "reuse_samples", "direct"), given)


def _only_predict(given: dict[str, Any]) -> str:
    """The mode that --predict stands for. Raises: ConfigError if another is asked for, too."""
    for name in ("mode", "radii"):
        if given[name] is not None:
            raise ConfigError(
                f"--predict certifies no radius, so --{name} means nothing with it; leave one of them out"
            )
    return "predict"


def _check_options(method: str, given: dict[str, Any]) -> None:
    """Refuse options that would do nothing with `method`, and values that they do not have."""
    lookup("noise source", dict.fromkeys(NOISE), given["noise"])
    if given["batch"] is not None and given["batch"] < 1:
        raise ConfigError(f"--batch {given['batch']} is no number of images; give 1 or more")
    for name, methods in FOR_METHODS.items():
        if given[name] not in (None, False, "auto") and method not in methods:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for --method {', '.join(methods)}; with {method} leave it out"
            )
    wanting = [name for name in OF_REUSE if given[name]]
    if given["reuse"] is None and wanting:
        raise ConfigError(f"--{wanting[0].replace('_', '-')} is for --reuse PARENT_RUN; without it leave it out")


def _indices(texts: tuple[str, ...]) -> tuple[int, ...]:
    """The values of --index: repeated, or with commas."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise ConfigError(f"--index {wrong[0]!r} is no position of a test image; write for example --index 3,17")
    return tuple(map(int, parts))


def _evaluate(ref: str, kind: str, kinds: tuple[str, ...], keys: tuple[str, ...], given: dict[str, Any]) -> None:
    """Build the settings from the options that were given, fill in the checkpoint's threat, run."""
    lookup("method", dict.fromkeys(kinds), kind)
    from hydrabench.workflows import reuse
    from hydrabench.workflows.subject import open_subject, settings_for, with_parent

    machine = read_machine(given)
    values = {"kind": kind} | {key: given[key] for key in keys if given.get(key) is not None}
    subject = open_subject(ref, machine=machine, precision=given["precision"])
    if given.get("reuse") is not None:
        subject = with_parent(subject, given["reuse"], given["parent"])
        assert subject.parent is not None
        given["n"], given["indices"] = subject.parent.selection(given["n"], given["indices"])
        return _run(subject, [reuse.reuse_settings(subject.parent, values)], machine, given)
    several = [sigma.strip() for sigma in str(values.get("sigma", "")).split(",")]
    runs = [{**values, "sigma": sigma} for sigma in several] if "sigma" in values else [values]
    settings = [settings_for(subject, run) for run in runs]
    if len(set(settings)) < len(settings):
        raise ConfigError(f"--sigma {values['sigma']} names one noise level twice; name each once")
    return _run(subject, settings, machine, given)


def _run(subject: Subject, runs: list[EvaluationSettings], machine: Machine, given: dict[str, Any]) -> None:
    """Make one run of each of the settings and print the summaries."""
    from hydrabench.config import at
    from hydrabench.ledger import find_run
    from hydrabench.runtime import World
    from hydrabench.workflows.computation import COMPILING
    from hydrabench.workflows.evaluation import evaluate
    from hydrabench.workflows.folders import default_folder, run_name
    from hydrabench.workflows.progress import say

    chosen = {"n": given["n"], "indices": given.get("indices", ())}
    folders = [given["out"] or default_folder(subject, settings, **chosen) for settings in runs]
    if given["out"] and len(runs) > 1:
        folders = [given["out"] / run_name(settings) for settings in runs]
    # A folder in use is found now, not when its turn comes, hours later.
    World().on_main(lambda: [find_run(folder, resume=given["resume"]) for folder in folders])
    if given.get("export_vnnlib") is not None:
        _export_vnnlib(subject, runs[0], machine, given)
    if given.get("compile") and World().is_main:
        say(COMPILING)
    summaries = {}
    for settings, out in zip(runs, folders, strict=True):
        summary = evaluate(subject, settings, out, machine=machine, **chosen, resume=given["resume"])
        summaries[str(out)] = summary
        if World().is_main and not (given["as_json"] and len(runs) > 1):
            images = "1 image" if summary["n"] == 1 else f"{summary['n']} images"
            title = f"{settings.protocol} of {subject.name}{at(settings)}, {images}, in {out}"
            print_summary(summary, given["as_json"], title)
    if World().is_main and given["as_json"] and len(runs) > 1:
        click.echo(json.dumps(summaries, indent=2))


def _export_vnnlib(subject: Subject, settings: EvaluationSettings, machine: Machine, given: dict[str, Any]) -> None:
    """Write the files of --export-vnnlib. Raises: ConfigError if the images are chosen one by one."""
    from hydrabench.workflows.vnnlib import TIMEOUT, export_vnnlib

    if given["indices"]:
        raise ConfigError("--export-vnnlib writes properties of the first -n images; leave --index out")
    limit = TIMEOUT if given["vnnlib_timeout"] is None else given["vnnlib_timeout"]
    export_vnnlib(subject, settings, given["export_vnnlib"], machine=machine, n=given["n"], timeout=limit)
