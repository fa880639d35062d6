"""The commands zoo list, show, fetch, verify and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hydrabench.cli.common import machine_options, read_machine


@click.group()
def zoo() -> None:
    """The checkpoints that come with hydrabench.

    \b
    Examples
      hydrabench zoo list
      hydrabench zoo verify
    """


@zoo.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def zoo_list(as_json: bool) -> None:
    """List all checkpoints.

    \b
    Example
      hydrabench zoo list
    """
    from hydrabench.workflows import zoo as workflow

    entries = workflow.list_entries()
    if as_json:
        click.echo(json.dumps(entries, indent=2))
        return
    width = max(len(entry["id"]) for entry in entries)
    for entry in entries:
        shown = (entry["dataset"], entry["arch"], entry["objective"], f"density {entry['density']:g}")
        click.echo(f"{entry['id']:<{width}}  {'  '.join(shown)}  {entry['bytes'] / 1000:.0f} kB")


@zoo.command("show")
@click.argument("name", metavar="ID")
def zoo_show(name: str) -> None:
    """Print everything the manifest says of one checkpoint, as JSON.

    \b
    Example
      hydrabench zoo show digits-trades-95
    """
    from hydrabench.workflows import zoo as workflow

    click.echo(workflow.find_entry(name).model_dump_json(indent=2))


@zoo.command("fetch")
@click.argument("name", metavar="ID")
def zoo_fetch(name: str) -> None:
    """Check the hash of a checkpoint and print the path of its file.

    \b
    Example
      hydrabench zoo fetch digits-trades-95
    """
    from hydrabench.workflows import zoo as workflow

    click.echo(str(workflow.fetch_entry(name)))


@zoo.command("verify")
@click.argument("names", metavar="[ID]...", nargs=-1)
@machine_options
def zoo_verify(names: tuple[str, ...], **machine: Any) -> None:
    """Evaluate shipped checkpoints again (all if no ID is given) and compare every image with the shipped ledgers.

    \b
    Example
      hydrabench zoo verify digits-trades-95
    """
    from hydrabench.workflows import zoo as workflow

    lines = workflow.verify(names, machine=read_machine(machine))
    click.echo(json.dumps(lines, indent=2) if machine["as_json"] else f"{len(lines)} ledgers agree")


@zoo.command("export")
@click.argument("ref")
@click.option("--format", "layout", required=True, type=click.Choice(["dense", "masked"]), help="Layout of the file.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="File to write.")
def zoo_export(ref: str, layout: Any, out: Path) -> None:
    """Write the checkpoint REF (file, run folder or zoo id) in another layout.

    \b
    Example
      hydrabench zoo export digits-trades-95 --format masked --out digits-trades-95.safetensors
    """
    from hydrabench.workflows import zoo as workflow

    sha256 = workflow.export_entry(ref, out, layout)
    click.echo(f"{out}: {out.stat().st_size / 1000:.0f} kB, SHA-256 {sha256}")
