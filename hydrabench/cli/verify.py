"""The command verify."""

from __future__ import annotations

import json
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


@click.command()
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
    """Compute a random sample of RUN's records again and say what is different; for reviewers.

    First the whole ledger is checked, as by `report`: hashes, every image once, every record on its own terms. Then
    the sample is computed with the same settings, images and random streams. Verdicts must be the same, numbers within
    1e-4, margins of attacks within 1e-2, votes of smoothing within a thousandth of the draws; a verdict may turn where
    its margin is within 1e-5 of 0. Exits with status 1 if a record differs.

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
    differing = [one for one in found if one.differences]
    if as_json:
        records = [{"index": one.index, "differences": one.differences} for one in found]
        click.echo(json.dumps({"compared": len(found), "differing": len(differing), "records": records}, indent=2))
    else:
        for one in found:
            click.echo(str(one))
    if differing:
        raise GateError(f"{len(differing)} of {len(found)} records of {run} are not what computing them again gives")
    if not as_json:
        click.echo(f"{len(found)} records of {run} are what computing them again gives")
