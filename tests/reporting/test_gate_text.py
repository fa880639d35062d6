"""The findings of the gate as people and machines read them."""

from __future__ import annotations

import json
from fractions import Fraction
from xml.etree import ElementTree

import pytest

from hydrabench.reporting.baseline import ledger_of
from hydrabench.reporting.comparison import GateVerdict, Refusal, Tolerance, compare
from hydrabench.reporting.evaluations import read_evaluation
from hydrabench.reporting.gate_text import MOST_SHOWN, conclusion, gate_json, junit_text, markdown_text, terminal_text

MANY = {"dataset": {"name": "digits", "split": "test", "n": 100}}


@pytest.fixture
def verdict(tmp_path, write_run):
    """One number as before, one image of another lost and one gained, one undecided, one refused."""

    def ledger(folder, kind, **about):
        return ledger_of(read_evaluation(write_run(tmp_path / folder / kind, kind, **about)))

    old = [ledger("old", "ibp", fails=[7]), ledger("old", "smoothing")]
    new = [ledger("new", "ibp", fails=[3]), ledger("new", "smoothing", fails=[2]), ledger("new", "pgd")]
    return compare(new, old, Tolerance())


def test_the_terminal_says_which_images_changed_and_how(verdict):
    text = terminal_text(verdict)
    assert "dense: ibp@1 at L∞ 8/255, 10 images\n" in text
    assert "  clean_accuracy            100.0 → 100.0  ✓ passed\n" in text
    assert "  verified_accuracy          90.0 →  90.0  ✗ regressed on 1 image\n    1 lost, 1 gained; without" in text
    assert "    image 3 lost: verified yes → no, lower 0.1 → -0.1\n" in text
    assert "    image 7 gained: verified no → yes, lower -0.1 → 0.1\n" in text
    flat = " ".join(text.split())
    assert (
        "? undecided 1 lost, 0 gained; p = 0.5; too few to tell at α = 0.01, which needs 7 losses: judge more" in flat
    )
    assert "pgd cannot be compared: it is pgd-50@1 at L∞ 8/255" in flat
    assert text.endswith("1 of 4 numbers regressed (1 lost images without falling)")
    assert all(len(line) <= 80 or "/" in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("before", "now", "max_drop", "mark", "conclusion"),
    [
        ([3, 4], [7], None, "✗ regressed on 1 image", "1 of 2 numbers regressed (1 lost images without falling)"),
        ([3, 4], [7], 0, "✓ passed", "2 numbers compared, no regression"),
        ([3], [4, 7], None, "✗ regressed", "1 of 2 numbers regressed"),
        ([3], [4, 7], 0, "✗ regressed", "1 of 2 numbers regressed"),
    ],
)
def test_a_number_that_rose_regressed_only_on_the_images_it_lost(
    before, now, max_drop, mark, conclusion, tmp_path, write_run
):
    runs = [read_evaluation(write_run(tmp_path / str(fails), "ibp", fails=fails)) for fails in (before, now)]
    old, new = map(ledger_of, runs)
    found = compare([new], [old], Tolerance(None if max_drop is None else Fraction(max_drop)))
    text = terminal_text(found)
    assert f"  {mark}\n    {len(now)} lost, {len(before)} gained" in text
    assert ("make up for images lost" in " ".join(text.split())) == ("image" in mark)
    assert text.endswith(f"\n{conclusion}")
    assert found.outcome == ("passed" if "passed" in mark else "regressed")


def test_many_changes_are_cut_but_all_counted(tmp_path, write_run):
    runs = [read_evaluation(write_run(tmp_path / str(n), "ibp", fails=range(n), header=MANY)) for n in (0, 30)]
    old, new = map(ledger_of, runs)
    found = compare([new], [old], Tolerance())
    for text in (terminal_text(found), markdown_text(found)):
        assert "30 lost" in text
        assert f"and {30 - MOST_SHOWN} more" in text
    assert len(gate_json(found)["comparisons"][1]["changes"]) == 30
    assert ElementTree.fromstring(junit_text(found).encode()).find(".//failure").text.count("image ") == 30


def test_markdown_is_a_table_with_the_images_folded_away(verdict):
    text = markdown_text(verdict)
    assert text.startswith(f"## Robustness gate: regressed\n\n{conclusion(verdict)}.\n")
    row = "| dense | `ibp@1 at L∞ 8/255` | verified_accuracy | 10 | 90.0 | 90.0 | 1 | 1 |  | ✗ regressed on 1 image |"
    assert row in text.splitlines()
    assert "| 3 | lost | verified yes → no, lower 0.1 → -0.1 |" in text
    assert text.count("<details>") == text.count("</details>") == 2
    assert "Not comparable:\n\n- `" in text
    rows = [line for line in text.splitlines() if line.startswith("| dense")]
    assert {row.count("|") for row in rows} == {11}


def test_junit_counts_failures_errors_and_skips(verdict):
    suite = ElementTree.fromstring(junit_text(verdict).encode()).find("testsuite")
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5", "failures": "1", "errors": "1", "skipped": "1",
    }  # fmt: skip
    failure = suite.find(".//failure")
    assert failure.get("message").startswith("90.0 → 90.0 %: 1 lost, 1 gained; without --max-drop")
    assert "image 3 lost: verified yes → no" in failure.text
    names = [(case.get("classname"), case.get("name")) for case in suite]
    assert ("dense", "verified_accuracy ibp@1 at L∞ 8/255") in names


def test_json_holds_everything(verdict):
    found = json.loads(json.dumps(gate_json(verdict)))
    assert (found["outcome"], found["max_drop"], found["alpha"]) == ("regressed", None, 0.01)
    one = next(one for one in found["comparisons"] if one["metric"] == "verified_accuracy")
    counts = ("old", "new", "lost", "gained", "rounding", "p_value")
    assert [one[name] for name in counts] == [9, 9, 1, 1, 0, None]
    old, new = {"verified": True, "lower": 0.1}, {"verified": False, "lower": -0.1}
    assert one["changes"][0] == {"index": 3, "direction": "lost", "old": old, "new": new}
    assert "pgd-50@1" in found["not_comparable"][0]["reason"]


def test_what_is_marked_up_elsewhere_stays_text():
    found = GateVerdict(Tolerance(), (), (Refusal("a<b>&", 'it says "<x>"'),))
    assert ElementTree.fromstring(junit_text(found).encode()).find(".//error").get("message") == 'it says "<x>"'
    assert conclusion(found) == "0 numbers compared, 1 could not be"
