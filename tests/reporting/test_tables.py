"""The written leaderboard: goldens of a hand-made pair of ledgers, and what readers and machines rely on."""

from __future__ import annotations

import csv
import io
import json
import math
from types import SimpleNamespace
from typing import Any, get_args

import pandas as pd
import pytest
from rich.console import Console

from hydrabench.evaluators import EVALUATORS, parse_settings
from hydrabench.evaluators.description import CONDITIONS
from hydrabench.evaluators.smoothing import MEANINGS
from hydrabench.evaluators.smoothing_settings import Mode
from hydrabench.reporting import build_leaderboard, csv_text, latex, markdown, rich_tables, summary_json
from hydrabench.reporting.columns import Protocol
from hydrabench.reporting.frames import cell_text
from hydrabench.reporting.legend import headings, notes, protocol_lines, size_text
from hydrabench.reporting.statistics import Estimate, mean_interval, wilson

GOLDEN = """\
# Leaderboard

digits test, first 10 images. Accuracy in percent with 95 % intervals.

| checkpoint | rank | arch | objective | density | nonzero | size | clean | PGD-50 L∞ 8/255 | IBP L∞ 8/255 |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| dense | 1 | cnn_small | crown-ibp | 1 | 20,000 of 20,000 | 80.0 kB | 80.0 [49.0, 94.3] | 80.0 [49.0, 94.3] | – |
| sparse | – | cnn_small | crown-ibp | 0.1 | 2,000 of 20,000 | 8.0 kB | 100.0 [72.2, 100.0] | – | 0.0 [0.0, 30.8] |

## How to read it
"""


@pytest.fixture
def pair(tmp_path, write_run):
    """An attack on one checkpoint (two images wrong, the rest robust), a bound that certifies nothing of another."""
    attack = write_run(tmp_path / "a", "pgd", wrong=[0, 1])
    return build_leaderboard([attack, write_run(tmp_path / "b", "ibp", name="sparse", fails=range(10))])


@pytest.fixture
def demo(tmp_path, write_run):
    """What `make demo` shows: clean, PGD, CROWN-IBP, two certified radii."""
    names = ["digits-crown-ibp/train", "digits-crown-ibp/lwm-sparse-0.1"]
    runs = [
        write_run(tmp_path / f"{kind}{i}", kind, name=name)
        for i, name in enumerate(names)
        for kind in ("pgd", "crown-ibp", "smoothing")
    ]
    return build_leaderboard(runs)


def test_markdown_of_two_hand_made_ledgers(pair):
    """Wilson 8/10 and 10/10: [0.49016, 0.94331], [10 / (10 + 3.8415), 1]; exact 0/10: [0, 1 - 0.025^0.1 = 0.30850]."""
    text = markdown(pair)
    assert text.startswith(GOLDEN)
    assert "- `pgd-50@1`: right on the clean image and after projected gradient descent" in text
    assert "steps 50, restarts 1, losses ce + margin, seed 0\n" in text
    assert "verified ≤ true ≤ attacked" in text


def test_every_data_set_has_tables_of_its_own(tmp_path, write_run):
    digits = write_run(tmp_path / "a", "pgd")
    photos = write_run(
        tmp_path / "b", "ibp", name="sparse", header={"dataset": {"name": "cifar10", "split": "test", "n": 10}}
    )
    board = build_leaderboard([digits, photos])
    tables = markdown(board).split("## How to read it")[0].split("\n\n")
    assert [text for text in tables if text.startswith(("digits", "cifar10"))] == [
        "cifar10 test, first 10 images. Accuracy in percent with 95 % intervals.",
        "digits test, first 10 images. Accuracy in percent with 95 % intervals.",
    ]
    shown = [text for text in tables if text.startswith("| checkpoint")]
    assert [("IBP" in text, "PGD" in text, "sparse" in text, "dense" in text) for text in shown] == [
        (True, False, True, False), (False, True, False, True),
    ]  # fmt: skip
    console = Console(width=100, record=True)
    console.print(*rich_tables(board, 100))
    assert console.export_text().count("checkpoint") == 2


def test_csv_of_two_hand_made_ledgers(pair):
    lines = list(csv.DictReader(io.StringIO(csv_text(pair))))
    assert [(line["network"], line["group"], line["protocol"], line["metric"]) for line in lines] == [
        ("dense", "clean", "clean@1", "clean_accuracy"),
        ("dense", "attacked", "pgd-50@1", "robust_accuracy"),
        ("sparse", "clean", "clean@1", "clean_accuracy"),
        ("sparse", "verified", "ibp@1", "verified_accuracy"),
    ]
    assert {(line["dataset"], line["split"], line["images"], line["n"]) for line in lines} == {
        ("digits", "test", "first", "10")
    }
    assert [(line["norm"], line["epsilon"], line["sigma"]) for line in lines[:2]] == [
        ("", "", ""),
        ("linf", "8/255", ""),
    ]
    assert [line["count"] for line in lines] == ["8", "8", "10", "0"]
    numbers = [[float(line[part]) for part in ("value", "low", "high")] for line in lines]
    assert numbers[0] == numbers[1] == pytest.approx([0.8, 0.4901625, 0.9433178])
    assert numbers[3] == pytest.approx([0, 0, 1 - 0.025**0.1])
    assert [line["seconds"] and float(line["seconds"]) for line in lines] == ["", pytest.approx(0.1)] * 2


def test_csv_and_json_give_back_every_number_exactly(demo):
    lines = {(line["sha256"], line["column"]): line for line in csv.DictReader(io.StringIO(csv_text(demo)))}
    summary = json.loads(json.dumps(summary_json(demo), allow_nan=False))
    told = {(number["sha256"], number["column"]): number for number in summary["numbers"]}
    cells = {(row.checkpoint.sha256, column.key): cell for row in demo.rows for column, cell in row.cells.items()}
    assert lines.keys() == told.keys() == cells.keys()
    assert [column["column"] for column in summary["columns"]] == [column.key for column in demo.columns]
    assert [network["sha256"] for network in summary["networks"]] == [row.checkpoint.sha256 for row in demo.rows]
    for place, cell in cells.items():
        for part in ("value", "low", "high"):
            assert float(lines[place][part]) == told[place][part] == getattr(cell, part)
        assert told[place]["count"] == cell.count


def test_pandas_reads_the_csv_as_a_tidy_table(demo):
    frame = pd.read_csv(io.StringIO(csv_text(demo)))
    wide = frame.pivot_table(index="network", columns="metric", values="value")
    assert wide.loc["digits-crown-ibp/train", "certified_accuracy@0.25"] == 1
    assert frame["value"].dtype.kind == "f"
    assert not frame.duplicated(["sha256", "column"]).any()


def test_an_infinite_end_of_an_interval_is_no_number_for_json_and_empty_in_csv(tmp_path, write_run):
    one = {"dataset": {"name": "digits", "split": "test", "n": 1}}
    board = build_leaderboard([write_run(tmp_path / "a", "smoothing", header=one)])
    (mean,) = (line for line in summary_json(board)["numbers"] if line["metric"] == "average_certified_radius")
    assert (mean["high"], mean["count"]) == (None, None)
    assert next(line for line in csv.DictReader(io.StringIO(csv_text(board))) if line["interval"] == "t")["high"] == ""


def test_json_columns_say_how_their_numbers_were_made(demo):
    columns = summary_json(demo)["columns"]
    assert columns[1] == {
        "column": "digits:test:10:float32:pgd-50@1:linf=8/255:robust_accuracy",
        "group": "attacked",
        "heading": "PGD-50 L∞ 8/255",
        "dataset": "digits",
        "split": "test",
        "n": 10,
        "images": "first",
        "precision": "float32",
        "protocol": "pgd-50@1",
        "metric": "robust_accuracy",
        "norm": "linf",
        "epsilon": "8/255",
        "sigma": None,
        "radius": None,
    }
    assert [(column["sigma"], column["radius"]) for column in columns[4:]] == [(0.25, 0.25), (0.25, 0.5), (0.25, None)]
    assert summary_json(demo)["protocols"]["smoothing-cohen@1"]["settings"]["alpha"] == 0.001


def test_json_says_what_is_known_of_a_network(tmp_path, write_run):
    origin = {"origin": {"compact_bytes": 900, "seed": 3, "additional_data": True, "selection": "test", "later": 1}}
    board = build_leaderboard([write_run(tmp_path / "a", "clean", header=origin)])
    (network,) = summary_json(board)["networks"]
    assert [network[key] for key in ("compact_bytes", "seed", "additional_data", "recipe")] == [900, 3, True, None]
    assert "| 900 B |" in markdown(board)


def test_latex_is_a_table_of_booktabs_in_which_every_line_has_all_columns(demo, tmp_path, write_run):
    text = latex(demo)
    head, body = text.split("\\midrule")
    assert [head.count(f"\\{rule}rule") + body.count(f"\\{rule}rule") for rule in ("top", "bottom")] == [1, 1]
    width = len(demo.columns) + 7
    for line in body.split("\\bottomrule")[0].strip().splitlines():
        assert line.endswith(" \\\\")
        assert line.count("&") == width - 1
    assert text.count("\\begin{") == text.count("\\end{")
    assert text.isascii()
    odd = latex(build_leaderboard([write_run(tmp_path / "a", "clean", name="a_b%c&d")]))
    assert "a\\_b\\%c\\&d & " in odd


def test_percent_appears_only_where_people_read(demo):
    assert "100.0 [72.2, 100.0]" in markdown(demo)
    assert "100.0" not in csv_text(demo) + json.dumps(summary_json(demo))


def test_cells_are_short():
    assert cell_text(wilson(467, 500)) == ("93.4", "[90.9, 95.3]")
    assert cell_text(mean_interval([0.4, 0.5, 0.6])) == ("0.500", "[0.252, 0.748]")
    assert cell_text(Estimate(0.3, 0.0, math.inf, None, 1, "t")) == ("0.300", "[0.000, ∞)")
    assert cell_text(None) == ("–", "")


@pytest.mark.parametrize("width", [100, 120])
def test_the_demo_fits_a_terminal_without_losing_a_digit(demo, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*rich_tables(demo, width))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert text.count("72.2–100.0") == 4  # Wilson 10/10: clean and PGD, both rows
    assert text.count("69.2–100.0") == 4  # exact 10/10: CROWN-IBP and r = 0.25
    for part in (
        "L∞ 8/255",
        "σ=0.25",
        "r=0.5",
        "lwm-sparse-0.1",
        "80.0 kB",
        "2,000",
        "digits test, first 10 images",
    ):
        assert part in text


def test_columns_that_do_not_fit_a_terminal_go_on_in_tables_of_the_same_rows(tmp_path, write_run):
    """Every heading, number and row is there, whatever the number of columns."""
    runs = [write_run(tmp_path / f"{sigma}", "smoothing", sigma=sigma) for sigma in (0.12, 0.25, 0.5, 1.0)]
    board = build_leaderboard([*runs, write_run(tmp_path / "ibp", "ibp")])
    console = Console(width=80, record=True, file=io.StringIO())
    tables = rich_tables(board, 80)
    console.print(*tables)
    text = console.export_text()
    assert len(tables) > 1
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    shown = [column for column in board.columns if column.metric != "average_certified_radius"]
    assert sum(len(table.columns) - 3 for table in tables) == len(shown)
    assert text.count("80.0 kB") == len(tables) * len(board.rows)
    assert text.count("Accuracy in percent") == 1


def test_the_legend_names_the_methods_of_a_cascade_and_no_limit_that_was_not_set(tmp_path, write_run):
    changes = {"a": {"kind": "cascade"}, "b": {"kind": "alpha-crown", "iterations": 3, "time_limit": None}}
    lines = dict(protocol_lines(build_leaderboard([write_run(tmp_path / k, **v) for k, v in changes.items()])))
    assert lines["cascade@1"].endswith("by the first of ibp, crown-ibp, crown that proves it")
    assert lines["alpha-crown-i3@2"].endswith("; iterations 3")


BOUND = "engine hydrabench, rigor standard"
NAMED = {
    "ibp": ({}, BOUND),
    "crown": ({}, "engine hydrabench"),
    "cascade": ({}, "engine hydrabench"),
    "searching": (
        {"kind": "cascade", "methods": ["ibp", "alpha-crown"]},
        "engine hydrabench, slopes output, iterations 100, learning_rate 0.1",
    ),
    "deciding": (
        {"kind": "cascade", "methods": ["ibp", "exact"]},
        "engine hydrabench, max_subproblems 20000",
    ),
    "radii": ({"kind": "crown-ibp", "search_radius": True}, f"search_radius, {BOUND}"),
    "pgd": ({}, "steps 50, restarts 1, losses ce + margin, seed 0"),
    "autoattack": ({}, "ensemble standard, seed 0"),
    "smoothing": ({}, "mode cohen, law gaussian, n0 100, samples 100000, alpha 0.001, seed 0, rigor standard"),
    "predict": (
        {"kind": "smoothing", "mode": "predict"},
        "mode predict, law gaussian, samples 100000, alpha 0.001, seed 0, rigor standard",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_legend_names_the_settings_that_matter_and_no_other(name):
    given, named = NAMED[name]
    kind = given.get("kind", name)
    radius = {"epsilon": "1/255"} if "epsilon" in EVALUATORS[kind].settings.model_fields else {}
    settings = parse_settings({"kind": kind, **radius, **given})
    values = {key: one for key, one in settings.plain().items() if key not in ("kind", "version", *CONDITIONS)}
    ((_, text),) = protocol_lines(SimpleNamespace(protocols=[Protocol(settings.protocol, kind, values)]))
    assert text.rpartition("; ")[2] == named


def test_headings_name_the_mode_of_smoothing_and_leave_the_rest_of_the_protocol_to_the_legend(tmp_path, write_run):
    modes = {"": "cohen", "adaptive": "adaptive-label-aware-n5000", "reuse": "reuse"}
    asked: dict[str, dict[str, Any]] = {
        "": {},
        "adaptive": {"mode": "adaptive", "label_aware": True, "samples": 5000},
        "reuse": {"mode": "reused", "reuse_samples": 10_000},
    }
    radii = [0.0, 0.25, 0.5, 0.75]
    runs = [write_run(tmp_path / f"run-{mode}", "smoothing", radii=radii, **asked[mode]) for mode in modes]
    found = {
        column.protocol: text for column, text in headings(build_leaderboard(runs)).items() if column.radius == 0.25
    }
    assert found == {
        "smoothing-cohen@1": "smoothing σ=0.25 r=0.25",
        "smoothing-adaptive-label-aware-n5000@1": "smoothing adaptive σ=0.25 r=0.25",
        "smoothing-reuse@1": "smoothing reuse σ=0.25 r=0.25",
    }


def test_columns_that_would_be_called_the_same_get_their_protocol(tmp_path, write_run):
    board = build_leaderboard(
        [
            write_run(tmp_path / "a", "smoothing", radii=[0.5]),
            write_run(tmp_path / "b", "smoothing", radii=[0.5, 1.0], samples=1000),
        ]
    )
    assert list(headings(board).values()) == [
        "smoothing σ=0.25 r=0.5 [smoothing-cohen@1]",
        "smoothing σ=0.25 mean radius [smoothing-cohen@1]",
        "smoothing σ=0.25 r=0.5 [smoothing-cohen-n1000@1]",
        "smoothing σ=0.25 r=1 [smoothing-cohen-n1000@1]",
        "smoothing σ=0.25 mean radius [smoothing-cohen-n1000@1]",
    ]


def test_a_method_with_two_protocols_names_them_even_where_radii_or_images_differ(tmp_path, write_run):
    runs = [
        write_run(tmp_path / "a", "cascade", epsilon="2/255"),
        write_run(tmp_path / "b", "cascade", epsilon="8/255", methods=["ibp", "crown-ibp"]),
        write_run(tmp_path / "c", "ibp", epsilon="2/255"),
        write_run(tmp_path / "d", "ibp", epsilon="8/255"),
        write_run(tmp_path / "e", "smoothing", radii=[0.5], sigma=0.12),
        write_run(tmp_path / "f", "smoothing", radii=[0.5], samples=1000),
    ]
    named = [text for text in headings(build_leaderboard(runs)).values() if "[" in text]
    assert named == ["cascade L∞ 2/255 [cascade@1]", "cascade L∞ 8/255 [cascade-ibp+crown-ibp@1]"]


def test_another_precision_is_part_of_the_heading(tmp_path, write_run):
    board = build_leaderboard([write_run(tmp_path / "a", "clean", header={"precision": "float64"})])
    assert list(headings(board).values()) == ["clean (float64)"]


def test_certificates_come_with_their_probability_of_failure(demo, pair):
    """0.001 of 10 images is 0.01 of an image."""
    assert any("at most α = 0.001" in note and "at most 0.01 are expected" in note for note in notes(demo))
    assert not any("α" in note for note in notes(pair))


def test_a_bar_in_a_name_does_not_break_the_table(tmp_path, write_run):
    text = markdown(build_leaderboard([write_run(tmp_path / "a", "clean", name="odd|name")]))
    assert "| odd\\|name | 1 | cnn_small |" in text


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (39_100, "39.1 kB"), (14_728_266, "14.7 MB")])
def test_sizes_are_readable(count, text):
    assert size_text(count) == text


def test_every_mode_of_smoothing_is_explained_in_its_own_words():
    texts = {mode: Protocol("id", "smoothing", {} if mode == "cohen" else {"mode": mode}).meaning for mode in MEANINGS}
    assert set(texts) == {*get_args(Mode), "reused", "imported"}
    assert len(set(texts.values())) == len(texts)
    sound = Protocol("id", "ibp", {"rigor": "sound"}).meaning
    assert sound.endswith("by interval bound propagation, rounded outwards, so that it holds in exact arithmetic")
    deployed = Protocol("id", "ibp", {"rigor": "deployed"}).meaning
    assert deployed.endswith("so that it holds for the network as it is computed, in any order of summation")
    assert "rounded" not in Protocol("id", "ibp", {}).meaning
    exact = Protocol("id", "smoothing", {"mode": "adaptive", "rigor": "discrete"}).meaning
    assert exact == texts["adaptive"] + ", under integer noise, which holds in floating point"


def test_mean_radii_of_runs_that_stop_early_come_with_a_warning(tmp_path, write_run):
    for mode, warned in (("cohen", False), ("adaptive", True)):
        run = write_run(tmp_path / mode, "smoothing", mode=mode)
        assert any("compare it only under one protocol" in note for note in notes(build_leaderboard([run]))) == warned
