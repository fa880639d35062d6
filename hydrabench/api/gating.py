"""The commands baseline and gate as functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from hydrabench.api.runs import Runs, folders_of
from hydrabench.reporting.comparison import ALPHA, GateVerdict
from hydrabench.reporting.gate_text import junit_text, markdown_text, terminal_text
from hydrabench.workflows.gating import gate_runs, write_baseline


@dataclass(frozen=True)
class Gate:
    """The changes of runs since a baseline."""

    verdict: GateVerdict = field(repr=False)

    @property
    def outcome(self) -> str:
        """The worst of all numbers: "passed", "undecided" (too few changed images to tell), "regressed"; or "not
        comparable", if something could not be compared and nothing regressed."""
        return self.verdict.outcome

    @property
    def passed(self) -> bool:
        """True if everything was compared and nothing regressed, as exit status 0 says."""
        return self.outcome in ("passed", "undecided")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each number: `network`, `protocol`, `metric`, `n` images, `old` and `new` counts, images `lost`
        and `gained`, `p_value` (NaN where verdicts are compared exactly), `outcome`."""
        rows = [
            {
                "network": one.network,
                "protocol": one.title,
                "metric": one.metric,
                "n": one.n,
                "old": one.old,
                "new": one.new,
                "lost": one.count("lost"),
                "gained": one.count("gained"),
                "p_value": float("nan") if one.p_value is None else one.p_value,
                "outcome": one.outcome,
            }
            for one in self.verdict.comparisons
        ]
        return pd.DataFrame(rows)

    @cached_property
    def changes(self) -> pd.DataFrame:
        """One row for each image whose verdict changed: `network`, `protocol`, `metric`, `index`, `direction` ("lost",
        "gained", "rounding": a margin next to 0), and the differing fields of its `old` and `new` record."""
        rows = [
            (one.network, one.title, one.metric, change.index, change.direction, dict(change.old), dict(change.new))
            for one in self.verdict.comparisons
            for change in one.changes
        ]
        return pd.DataFrame(rows, columns=["network", "protocol", "metric", "index", "direction", "old", "new"])

    @property
    def refused(self) -> dict[str, str]:
        """Return the reasons why something could not be compared, by run or ledger."""
        return {one.about: one.reason for one in self.verdict.refusals}

    def to_markdown(self) -> str:
        """Return the changes as Markdown for a pull request."""
        return markdown_text(self.verdict)

    def to_junit(self) -> str:
        """Return the changes as JUnit's XML."""
        return junit_text(self.verdict)

    def __repr__(self) -> str:
        return terminal_text(self.verdict)


def gate(
    runs: Runs,
    against: str | Path,
    *,
    max_drop: str | float | None = None,
    metric: str | None = None,
    alpha: float = ALPHA,
) -> Gate:
    """Compare runs with a baseline, image by image.

    Where the evaluator is deterministic, every image that lost its verdict counts; where chance has a part (smoothing,
    time limits), an exact one-sided McNemar test decides.

    Args:
        runs: runs of `attack` and `certify`, run folders, or folders with run folders below them; one or several.
        against: a baseline, or a folder of runs.
        max_drop: how much a number may lose: a fraction in [0, 1], or "0.5pt" for half a percentage point; images
            gained then make up for others. None: no image may be lost.
        metric: only these: "clean", "robust", "verified", "certified" or "certified_accuracy@0.5"; None: all.
        alpha: of the test, for each number, in (0, 1).
    Raises: ConfigError for a drop or an alpha that is none. What cannot be read or compared is in `refused`.
    """
    return Gate(gate_runs(folders_of(runs), Path(against), max_drop=max_drop, metric=metric, alpha=alpha))


def baseline(runs: Runs, out: str | Path) -> Path:
    """Keep the ledgers of runs in a few kilobytes, for `gate` to compare later runs with.

    Args:
        runs: as for `gate`. out: the folder of the baseline; an earlier one is replaced.
    Returns: that folder.
    Raises: LedgerError if a run is incomplete or altered, two are about the same, or `out` holds something else.
    """
    write_baseline(folders_of(runs), Path(out))
    return Path(out)
