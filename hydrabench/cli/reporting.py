"""The command report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hydrabench.cli.common import FOLDER, plugin_option
from hydrabench.errors import ConfigError, shortened
from hydrabench.selection import MOST_IMAGES

LEAST_WIDTH = 80


@click.command(short_help="Make a leaderboard from the ledgers of runs.")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, default=Path("reports/latest"), show_default=True, help="Folder of the report.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    help="md, csv, json, latex, html, parquet (records), tsv (Cohen's) or robustbench; may be repeated.  "
    "[default: the first five]",
)
@click.option(
    "--import",
    "imports",
    type=(str, str),
    multiple=True,
    metavar="cohen|papers|robustbench PATH",
    help="Add results of others: cohen PATH or 'logs/**/*': tables of Cohen's tools; papers FILE.yml: published "
    "numbers; robustbench PATH: its model_info. May be repeated.",
)
@click.option(
    "-n",
    "--n",
    "images",
    metavar="N|each",
    help="Compare on the first N images, or give each number of images columns of its own.  "
    "[default: the images that all networks have]",
)
@click.option("--sort", default="", metavar="HEADING", help="Rank by this column, or a part of its heading.")
@click.option("--group-by", default="density", show_default=True, help="Rank within density, arch or dataset.")
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary, and nothing else, as JSON on stdout.")
def report(
    runs: tuple[Path, ...],
    out: Path,
    formats: tuple[str, ...],
    imports: tuple[tuple[str, str], ...],
    images: str | None,
    sort: str,
    group_by: str,
    as_json: bool,
) -> None:
    """Make a leaderboard from the ledgers of RUNS (run folders, or folders that hold some).

    `--format tsv` writes a table for each smoothing run, as Cohen's certify.py does; `--import cohen` reads one, or all
    that a pattern finds. Of a pattern, name, dataset and sigma come from the paths; of one table they are keys behind
    the path, as are, if known, samples (N), n0, alpha, split, arch, objective, density; radii=0+0.25+0.5.
    `--format robustbench` writes model_info/DATASET/THREAT/NAME.json for AutoAttack runs, and `--import robustbench`
    reads such files. `--import papers` reads numbers that a paper prints, with their source. Both have no records, so
    no test uses them.

    Exits with status 1 if a ledger is incomplete, if ledgers speak of different images, or if one says
    "verified" where another says "broken".

    \b
    Examples
      hydrabench report runs/evaluations --out reports/mine
      hydrabench report runs/evaluations --import cohen logs/sigma_0.25,name=cohen,dataset=cifar10,sigma=0.25
      hydrabench report --import cohen 'logs/**/*.tsv' --out reports/literature
      hydrabench report runs/evaluations --import papers hydra.yml
    """
    from hydrabench.workflows.reporting import REPORT_FORMATS, write_report

    n = _meeting(images)
    if not runs and not imports:
        raise click.UsageError("Missing argument 'RUNS...'.")
    asked = {"n": n, "sort": sort, "group_by": group_by}
    show_report(write_report(list(runs), out, formats or REPORT_FORMATS, imports=imports, **asked), out, as_json)


def _meeting(text: str | None) -> Any:
    """Read --n."""
    if text is None or text == "each":
        return text or "common"
    if not text.isdecimal() or not 0 < int(text) <= MOST_IMAGES:
        raise ConfigError(f"--n {shortened(text)} is no number of images; write for example --n 500, or --n each")
    return int(text)


def show_report(leaderboard: Any, out: Path, as_json: bool) -> None:
    """Print a leaderboard as a table, how networks differ, and where the report lies, or print its JSON."""
    from rich.console import Console

    from hydrabench.reporting import comparison_lines, rich_tables, summary_json

    if as_json:
        click.echo(json.dumps(summary_json(leaderboard), indent=2))
        return
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)  # a narrow window may wrap lines, a log must not lose columns
    console.print(*rich_tables(leaderboard, console.width))
    for line in comparison_lines(leaderboard):
        click.echo(line)
    page = out / "index.html"
    click.echo(f"report written to {out}" + (f"; open {page}" if page.exists() else ""))
