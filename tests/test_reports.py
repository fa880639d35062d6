"""The reports that are kept in the repository say what their data say."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_tables_of_the_reproduction_are_those_of_the_zoo_and_the_kept_reports(monkeypatch):
    """`python tools/make_reports.py write` would change nothing."""
    monkeypatch.syspath_prepend(REPOSITORY / "tools")
    from reproduction import write_up

    assert write_up(REPOSITORY / "reports") == (REPOSITORY / "reports/hydra-reproduction.md").read_text("utf-8")
