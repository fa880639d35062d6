"""Progress goes to stderr: a line every few seconds in a log, nothing from processes that do not talk."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from hydrabench.workflows import progress
from hydrabench.workflows.progress import say, tracking


def test_a_log_gets_the_last_line_and_those_in_between_only_when_time_has_passed(capsys, monkeypatch):
    moments = iter([0.0, 1.0, 6.0, 6.5, 7.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with tracking("work", total=4) as advance:
        for note in ("a", "b", "c", "d"):
            advance(1, note)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["work: 2/4, 6 s, 6 s left  b", "work: 4/4, 7 s, 0 s left  d"]


def test_what_an_earlier_run_did_counts_as_done_but_not_towards_the_speed(capsys, monkeypatch):
    moments = iter([0.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with tracking("work", total=4, done=2) as advance:
        advance(1, "")
    assert capsys.readouterr().err == "work: 3/4, 10 s, 10 s left\n"


def test_a_note_before_anything_is_done_comes_without_a_forecast(capsys, monkeypatch):
    moments = iter([0.0, 6.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with tracking("work", total=4) as advance:
        advance(0, "layer 1")
        advance(1, "")
    assert capsys.readouterr().err.splitlines() == ["work: 0/4, 6 s  layer 1", "work: 1/4, 12 s, 36 s left"]


def test_the_forecast_counts_down_while_a_piece_is_at_work_and_ends_where_it_takes_longer(capsys, monkeypatch):
    """One of three pieces in 6 s: 12 s are left, 6 s later 6, and after 18 s nobody knows."""
    moments = iter([0.0, 6.0, 12.0, 19.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    with tracking("work", total=3) as advance:
        for pieces in (1, 0, 0):
            advance(pieces, "")
    lines = ["work: 1/3, 6 s, 12 s left", "work: 1/3, 12 s, 6 s left", "work: 1/3, 19 s"]
    assert capsys.readouterr().err.splitlines() == lines


def test_parts_of_pieces_are_not_rounded_up_to_a_whole_and_their_sum_is_one(capsys, monkeypatch):
    """Ten tenths are one in spite of float64, in which they sum to 0.9999999999999999."""
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with tracking("work", total=1) as advance:
        for _ in range(10):
            advance(0.1, "")
    counts = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert counts == ["work: 0/1"] * 9 + ["work: 1/1"]


LONG_NOTE = "certified@0 93.3% [68.1, 99.8], @0.25 80.0%, @0.5 26.7%, @0.75 0.0%, 123,456,789 draws, 12.3% saved"


@pytest.mark.parametrize("title", ["work", "smoothing-cohen-n1000@4 runs/" + 20 * "long/" + "end at σ=0.25"])
@pytest.mark.parametrize("note", ["", "short", LONG_NOTE])
def test_a_line_of_a_log_is_short_but_keeps_its_numbers_and_both_ends_of_the_title(title, note, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with tracking(title, total=50_000) as advance:
        advance(12_345, note)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) <= 120
    head, rest = line.split(": 12345/50000, 0 s, 0 s left")
    assert head == title or (head.startswith(title[:20]) and head.endswith(title[-20:]) and "…" in head)
    shown = rest.removeprefix("  ").removesuffix(" …")
    assert note.startswith(shown)
    assert not note or shown


def test_an_invisible_process_prints_nothing(capsys):
    with tracking("work", total=1, visible=False) as advance:
        advance(1, "note")
    assert capsys.readouterr() == ("", "")


def test_messages_leave_stdout_to_the_results(capsys):
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_terminal_gets_a_bar(monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with tracking("work", total=2) as advance:
        advance(2, "almost")
    assert "work" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
    assert "almost" in terminal.getvalue()


@pytest.mark.parametrize(
    ("notebook", "widgets", "bars"), [(False, False, True), (True, True, True), (True, False, False)]
)
def test_a_notebook_without_widgets_gets_lines_instead_of_a_bar(monkeypatch, notebook, widgets, bars):
    """Jupyter's stderr says that it is a terminal, and without ipywidgets rich shows nothing there but a warning."""
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "Console", lambda **_: SimpleNamespace(is_jupyter=notebook))
    monkeypatch.setattr(progress, "find_spec", lambda name: object() if widgets and name == "ipywidgets" else None)
    chosen = []
    monkeypatch.setattr(progress, "_bar", lambda *args: chosen.append("bar") or nullcontext(progress._ignore))
    monkeypatch.setattr(progress, "_log", lambda *args: chosen.append("lines") or nullcontext(progress._ignore))
    with tracking("work", total=1) as advance:
        advance(1, "")
    assert chosen == ["bar" if bars else "lines"]
