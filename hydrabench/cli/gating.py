"""The commands baseline and gate."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hydrabench.cli.common import FOLDER, plugin_option
from hydrabench.errors import ConfigError, GateError, IncomparableError

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Keep the ledgers of runs, for `gate` to compare with.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, required=True, help="Folder of the baseline; an earlier one is replaced.")
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary, and nothing else, as JSON on stdout.")
def baseline(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Keep the ledgers of RUNS in a few kilobytes, for `gate` to compare later runs with.

    RUNS are run folders of attack and certify, or folders that hold some. Commit the folder.

    \b
    Example
      hydrabench baseline runs/evaluations --out robustness
    """
    from hydrabench.workflows.gating import write_baseline

    summary = write_baseline(list(runs), out)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        click.echo("{ledgers} ledgers of {records} records, {bytes:,} bytes".format(**summary) + f", in {out}")


def _drop(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    from hydrabench.workflows.gating import parse_drop

    try:
        return text if text is None or parse_drop(text) is not None else None
    except ConfigError as error:
        raise click.BadParameter(str(error).removeprefix("max-drop ")) from error


@click.command(short_help="Compare runs with a baseline; status 1 if one got worse.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--against", type=FOLDER, required=True, help="Baseline, or folder of runs, to compare with.")
@click.option(
    "--max-drop",
    callback=_drop,
    metavar="0.5pt",
    help="Percentage points that a number may lose; images gained make up for others.  [default: no image may be lost]",
)
@click.option("--metric", help="Only these: clean, robust, verified, certified, or certified_accuracy@0.5.")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Level of the test on numbers with chance in them, such as smoothing.",
)
@click.option("--junit", type=FILE, help="Also write JUnit's XML.")
@click.option("--markdown", type=FILE, help='Also write a summary in Markdown, e.g. to "$GITHUB_STEP_SUMMARY".')
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="Print what was found, and nothing else, as JSON on stdout.")
def gate(
    runs: tuple[Path, ...],
    against: Path,
    max_drop: str | None,
    metric: str | None,
    alpha: float,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Compare RUNS with a baseline, image by image; exit with status 1 if something got worse.

    A run is compared with the ledger of the same images, protocol, settings and precision. Where the evaluator is
    deterministic, every image that lost its verdict is a regression, even if others gained it and the number rose (but
    see --max-drop); those whose margin is within 1e-5 of 0 do not count. Where chance has a part (smoothing, time
    limits), an exact one-sided McNemar test at --alpha decides, and too few changed images for any finding are
    "undecided".

    Exit status: 0 no regression, 1 a regression, 2 bad usage, 3 something cannot be compared (the reason is printed).

    \b
    Examples
      hydrabench gate runs/evaluations --against robustness
      hydrabench gate runs/evaluations --against robustness --max-drop 0.5pt --metric verified
      hydrabench gate runs/smoothing --against robustness --alpha 0.001 --junit gate.xml
    """
    from hydrabench.files import write_text
    from hydrabench.reporting.gate_text import conclusion, gate_json, junit_text, markdown_text, terminal_text
    from hydrabench.workflows.gating import gate_runs

    verdict = gate_runs(list(runs), against, max_drop=max_drop, metric=metric, alpha=alpha)
    for path, text in ((junit, junit_text), (markdown, markdown_text)):
        if path is not None:
            write_text(path, text(verdict))
    click.echo(json.dumps(gate_json(verdict), indent=2) if as_json else terminal_text(verdict))
    if verdict.outcome in ("regressed", "not comparable"):
        error = GateError if verdict.outcome == "regressed" else IncomparableError
        raise error(f"{conclusion(verdict)}; the baseline is {against}")
