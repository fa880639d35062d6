"""The gate's verdict as text for a terminal, Markdown, JUnit's XML and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from hydrabench.reporting.comparison import Change, Comparison, GateVerdict, Tolerance, fewest_losses

GATE_SCHEMA = "hydrabench.gate/1"
LINE_WIDTH = 80
MOST_SHOWN = 20  # changed images of one number; JSON has all
MARKS = {
    "passed": "✓ passed",
    "undecided": "? undecided",
    "regressed": "✗ regressed",
    "not comparable": "! not comparable",
}
_VALUES = {True: "yes", False: "no", None: "–"}


def terminal_text(verdict: GateVerdict) -> str:
    """Write what the gate found in lines of at most 80 characters, but for names that are longer."""
    lines: list[str] = []
    title = None
    for one in verdict.comparisons:
        here = f"{one.network}: {one.title}, {images_text(one)} images"
        lines += _wrapped(here) if here != title else []
        title = here
        before, now = percent(one.old, one.n), percent(one.new, one.n)
        lines.append(f"  {one.metric:<26}{before:>5} → {now:>5}  {mark(one)}")
        lines += _wrapped(remark(one, verdict.tolerance), "    ") if one.changes else []
        for change in _worst_first(one.changes)[:MOST_SHOWN]:
            lines += _wrapped(f"image {change.index} {change.direction}: {change_text(change)}", "    ")
        if len(one.changes) > MOST_SHOWN:
            lines.append(f"    and {len(one.changes) - MOST_SHOWN} more")
    for refusal in verdict.refusals:
        lines += _wrapped(f"{refusal.about} cannot be compared: {refusal.reason}")
    return "\n".join([*lines, conclusion(verdict)])


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Cut a text into lines between words."""
    rest = f"{indent}  "
    return textwrap.wrap(
        text, LINE_WIDTH, initial_indent=indent, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def conclusion(verdict: GateVerdict) -> str:
    """Return one line that says how it ended."""
    numbers = f"{len(verdict.comparisons)} number{'s' * (len(verdict.comparisons) != 1)}"
    regressed = [one for one in verdict.comparisons if one.outcome == "regressed"]
    if regressed:
        held = sum(one.new >= one.old for one in regressed)
        return f"{len(regressed)} of {numbers} regressed" + f" ({held} lost images without falling)" * bool(held)
    if verdict.refusals:
        return f"{numbers} compared, {len(verdict.refusals)} could not be"
    undecided = sum(one.outcome == "undecided" for one in verdict.comparisons)
    return f"{numbers} compared, no regression" + f", {undecided} undecided" * bool(undecided)


def images_text(one: Comparison) -> str:
    """Write how many images were compared, and how many the baseline has if that is more."""
    return str(one.n) if one.n == one.held else f"{one.n} of {one.held}"


def percent(count: int, n: int) -> str:
    """Write a fraction of images in percent with one decimal."""
    return f"{count / n:.1%}"[:-1]


def mark(one: Comparison) -> str:
    """Return the outcome of one number; a number that did not fall has regressed on the images that it lost."""
    if one.outcome == "regressed" and one.new >= one.old:
        lost = one.count("lost")
        return f"{MARKS[one.outcome]} on {lost} image{'s' * (lost != 1)}"
    return MARKS[one.outcome]


def remark(one: Comparison, tolerance: Tolerance) -> str:
    """Say how many images changed, and what the outcome rests on."""
    parts = [f"{one.count('lost')} lost, {one.count('gained')} gained"]
    if one.count("rounding"):
        parts[0] += f", {one.count('rounding')} turned by rounding"
    if one.outcome == "regressed" and one.new >= one.old:
        parts.append("without --max-drop, images gained do not make up for images lost")
    if one.p_value is not None:
        parts.append(f"p = {one.p_value:.2g}")
    if one.outcome == "undecided":
        needed = fewest_losses(tolerance.alpha)
        parts.append(f"too few to tell at α = {tolerance.alpha:g}, which needs {needed} losses: judge more images")
    return "; ".join(parts)


def _worst_first(changes: Sequence[Change]) -> list[Change]:
    order = ("lost", "rounding", "gained")
    return sorted(changes, key=lambda change: (order.index(change.direction), change.index))


def change_text(change: Change) -> str:
    """Write the old and the new record of an image, as far as they differ."""
    return ", ".join(f"{name} {_value(change.old[name])} → {_value(change.new[name])}" for name in change.new)


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return _VALUES[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_text(verdict: GateVerdict) -> str:
    """Write what the gate found as Markdown, as a pull request shows it."""
    lines = [f"## Robustness gate: {verdict.outcome}", "", conclusion(verdict) + ".", ""]
    if verdict.comparisons:
        lines += [
            "| network | protocol | number | images | before | now | lost | gained | p | |",
            "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
        ]
        lines += [_row(one) for one in verdict.comparisons]
    for one in verdict.comparisons:
        if one.changes:
            summary = f"{one.network}, {one.title}, {one.metric}: {remark(one, verdict.tolerance)}"
            lines += ["", f"<details><summary>{summary}</summary>", "", "| image | | record |", "|---:|---|---|"]
            lines += [
                f"| {c.index} | {c.direction} | {change_text(c)} |" for c in _worst_first(one.changes)[:MOST_SHOWN]
            ]
            more = len(one.changes) - MOST_SHOWN
            lines += [f"| | | and {more} more |"] if more > 0 else []
            lines += ["", "</details>"]
    if verdict.refusals:
        lines += ["", "Not comparable:", "", *(f"- `{one.about}`: {one.reason}" for one in verdict.refusals)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _row(one: Comparison) -> str:
    before, now = percent(one.old, one.n), percent(one.new, one.n)
    p_value = "" if one.p_value is None else f"{one.p_value:.2g}"
    counts = (images_text(one), before, now, one.count("lost"), one.count("gained"), p_value, mark(one))
    return "| " + " | ".join(map(str, (one.network, f"`{one.title}`", one.metric, *counts))) + " |"


def junit_text(verdict: GateVerdict) -> str:
    """Write what the gate found as JUnit's XML: a test case a number; what cannot be compared is an error."""
    cases = [*_cases(verdict)]
    kinds = [child.tag for case in cases for child in case]
    counts = {"tests": len(cases), "failures": kinds.count("failure"), "errors": kinds.count("error")}
    attributes = {"name": "hydrabench gate", **{key: str(count) for key, count in counts.items()}}
    suite = ElementTree.Element("testsuite", attributes | {"skipped": str(kinds.count("skipped"))})
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _cases(verdict: GateVerdict) -> Iterator[ElementTree.Element]:
    """Yield the test cases. An undecided number is skipped, not passed."""
    tags = {"regressed": "failure", "undecided": "skipped"}
    for one in verdict.comparisons:
        case = ElementTree.Element("testcase", {"classname": one.network, "name": f"{one.metric} {one.title}"})
        if one.outcome in tags:
            message = f"{percent(one.old, one.n)} → {percent(one.new, one.n)} %: {remark(one, verdict.tolerance)}"
            child = ElementTree.SubElement(case, tags[one.outcome], {"message": message})
            shown = _worst_first(one.changes)
            child.text = "\n".join(f"image {c.index} {c.direction}: {change_text(c)}" for c in shown)
        yield case
    for refusal in verdict.refusals:
        case = ElementTree.Element("testcase", {"classname": "not comparable", "name": refusal.about})
        ElementTree.SubElement(case, "error", {"message": refusal.reason})
        yield case


def gate_json(verdict: GateVerdict) -> dict[str, Any]:
    """Return what the gate found as one JSON value, with every image that changed."""
    allowed = verdict.tolerance.max_drop
    return {
        "schema": GATE_SCHEMA,
        "outcome": verdict.outcome,
        "max_drop": None if allowed is None else float(allowed),
        "alpha": verdict.tolerance.alpha,
        "comparisons": [_comparison(asdict(one), one) for one in verdict.comparisons],
        "not_comparable": [asdict(one) for one in verdict.refusals],
    }


def _comparison(values: Mapping[str, Any], one: Comparison) -> dict[str, Any]:
    counts = {direction: one.count(direction) for direction in ("lost", "gained", "rounding")}
    return {**values, **counts, "changes": list(values["changes"])}
