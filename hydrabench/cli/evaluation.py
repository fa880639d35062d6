"""The commands attack and certify."""

from __future__ import annotations

from typing import Any

import click

from hydrabench.cli.common import REF_HELP, image_options, machine_options, print_summary, read_machine, run_options
from hydrabench.errors import lookup


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


@click.command()
@click.option("--ckpt", "ref", required=True, help=REF_HELP)
@click.option("--method", default="crown-ibp", show_default=True, help="ibp, crown-ibp or smoothing.")
@click.option("--epsilon", help="L∞ radius in pixel units, e.g. 2/255.  [default: the checkpoint's training radius]")
@click.option(
    "--sigma", type=float, help="Smoothing: noise level in pixel units.  [default: the training noise, or 0.25]"
)
@click.option("--n0", type=int, help="Smoothing: selection samples.  [default: 100]")
@click.option("--samples", type=int, help="Smoothing: estimation samples.  [default: 100000]")
@click.option("--alpha", type=float, help="Smoothing: failure probability of each certificate.  [default: 0.001]")
@click.option("--radii", help="Smoothing: L2 radii to report, e.g. 0,0.25,0.5.  [default: 0,0.25,0.5,0.75]")
@click.option("--seed", type=int, help="Smoothing: key of all random streams.  [default: 0]")
@image_options
@run_options
@machine_options
def certify(ref: str, method: str, **given: Any) -> None:
    """Certify a checkpoint: verified or certified accuracy, a lower bound on the truth.

    \b
    Examples
      hydrabench certify --ckpt digits-crown-ibp-99
      hydrabench certify --ckpt runs/final --method ibp --epsilon 2/255 -n 200
      hydrabench certify --ckpt runs/final --method smoothing --sigma 0.25 --samples 10000
    """
    if given["radii"] is not None:
        given["radii"] = given["radii"].split(",")
    keys = ("epsilon", "sigma", "n0", "samples", "alpha", "radii", "seed")
    _evaluate(ref, method, ("ibp", "crown-ibp", "smoothing"), keys, given)


def _evaluate(ref: str, kind: str, kinds: tuple[str, ...], keys: tuple[str, ...], given: dict[str, Any]) -> None:
    """Build the settings from the options that were given, fill in the checkpoint's threat, run."""
    lookup("method", dict.fromkeys(kinds), kind)
    from hydrabench.runtime import World
    from hydrabench.workflows import evaluation

    machine = read_machine(given)
    values = {"kind": kind} | {key: given[key] for key in keys if given[key] is not None}
    subject = evaluation.open_subject(ref, machine=machine, precision=given["precision"])
    settings = evaluation.settings_for(subject, values)
    out = given["out"] or evaluation.default_folder(subject, settings)
    summary = evaluation.evaluate(subject, settings, out, machine=machine, n=given["n"], resume=given["resume"])
    if World().is_main:
        print_summary(
            summary, given["as_json"], f"{settings.protocol} of {subject.name}, {summary['n']} images, in {out}"
        )
