"""The command verify."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hydrabench.cli.common import (
    FOLDER,
    REF_HELP,
    foreign_options,
    machine_options,
    model_options,
    read_network,
    read_run_options,
)
from hydrabench.cli.values import CHECKPOINT
from hydrabench.errors import GateError


@click.command(short_help="Compute a sample of a run's records again, and compare.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--sample", type=int, default=50, show_default=True, help="How many records to compute again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the records.")
@click.option("--ckpt", "ref", type=CHECKPOINT, help=f"{REF_HELP}  [default: what the run names, found by its hash]")
@click.option("--reuse", type=FOLDER, help="The parent's run, if RUN was made with --reuse.")
@click.option("--parent", type=CHECKPOINT, help="Then the parent's checkpoint.  [default: the name in its run]")
@model_options
@foreign_options
@machine_options
def verify(run: Path, as_json: bool, **given: Any) -> None:
    """Compute a sample of RUN's records again, judge its adversarial images, and say what is different; for reviewers.

    First the whole ledger is checked, as by `report`: hashes, every image once, every record on its own terms. Then
    the sample is computed with the same settings, images and random streams. Verdicts must be the same, numbers within
    1e-4, margins of attacks within 1e-2, votes of smoothing within a thousandth of the draws; a verdict may turn where
    its margin is within 1e-5 of 0. Of a run that stores adversarial images (--keep adversarial, or method exact) every
    one is judged again: its distance from the image, measured in float64, its pixel range, and its class. Exits with
    status 1 if a record differs or an image is not what its record says.

    \b
    Examples
      hydrabench verify runs/evaluations/digits-trades-95/pgd-50-v2-16_255
      hydrabench verify runs/smoothing --sample 5 --ckpt runs/final
      hydrabench verify runs/pgd --model mynet.py:build --weights mynet.pt
    """
    from hydrabench.workflows.verifying import NetworkSource, verify_run

    described, request = read_network(given, given["ref"], needed=False)
    network = NetworkSource(given["ref"], described, given["reuse"], given["parent"], request)
    options, sample, seed = read_run_options(given), given["sample"], given["seed"]
    found = verify_run(run, options=options, sample=sample, seed=seed, network=network)
    records, examples = found.records, found.examples
    wrong, strange = ([one for one in part if one.differences] for part in (records, examples))
    if as_json:
        told = {"records": [asdict(one) for one in records], "examples": [asdict(one) for one in strange]}
        counts = {"compared": len(records), "differing": len(wrong), "replayed": len(examples), "failing": len(strange)}
        click.echo(json.dumps({**counts, **told}, indent=2))
    else:
        for one in (*records, *strange):
            click.echo(str(one))
    problems = []
    if wrong:
        problems.append(f"{len(wrong)} of {len(records)} records of {run} are not what computing them again gives")
    if strange:
        problems.append(f"{len(strange)} of {len(examples)} stored adversarial images are not what their records say")
    if problems:
        raise GateError(", and ".join(problems))
    if not as_json:
        stored = f", and {len(examples)} stored adversarial images what their records say" if examples else ""
        click.echo(f"{len(records)} records of {run} are what computing them again gives{stored}")
