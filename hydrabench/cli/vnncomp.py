"""The command vnncomp."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hydrabench.cli.common import FOLDER


@click.command(short_help="Decide instances of VNN-COMP: ONNX and VNN-LIB.")
@click.argument("instances", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=FOLDER, help="Folder for results.csv and results/.")
@click.option("--timeout", type=float, help="Seconds for each instance.  [default: those of INSTANCES]")
@click.option("-n", type=click.IntRange(min=1), help="Only the first N instances.")
@click.option("--resume", is_flag=True, help="Go on after the rows that --out has.")
@click.option("--json", "as_json", is_flag=True, help="Print the number of each answer as JSON.")
def vnncomp(instances: Path, out: Path, timeout: float | None, n: int | None, *, resume: bool, as_json: bool) -> None:
    """Decide the ONNX and VNN-LIB instances that INSTANCES, a csv file, names: holds, violated, unknown or timeout.

    Each line is NETWORK.onnx,PROPERTY.vnnlib,SECONDS, paths relative to the file, compressed (.gz) or not. Inputs lie
    in boxes, outputs are compared linearly, also in disjunctions. A violated property comes with the input that
    violates it, checked by onnxruntime. An instance that cannot be read is an error of its own, and the next one
    follows. Needs `pip install 'hydrabench[onnx]'`.

    \b
    Examples
      hydrabench vnncomp vnncomp2021/benchmarks/mnistfc/mnistfc_instances.csv --out runs/mnistfc
      hydrabench vnncomp instances.csv --out runs/vnncomp --timeout 60 -n 20 --resume
    """
    from hydrabench.errors import ConfigError

    if timeout is not None and not 0 < timeout < float("inf"):
        raise ConfigError(f"--timeout is a number of seconds above 0, got {timeout:g}")
    from hydrabench.workflows import refusals

    refusals.refuse_results(out / refusals.RESULTS, resume=resume)
    from hydrabench.workflows.vnncomp import run_instances

    found = run_instances(instances, out, timeout=timeout, n=n, resume=resume)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(f"{sum(found.values())} instances in {out}: {', '.join(f'{c} {name}' for name, c in found.items())}")
