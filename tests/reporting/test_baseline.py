"""Baselines: small, the same bytes each time, nothing lost that a verdict rests on, and proof against damage."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

from hydrabench.errors import LedgerError
from hydrabench.evaluators import EVALUATORS
from hydrabench.reporting.baseline import CONTENTS_FILE, baseline_files, ledger_of, read_baseline, verdicts
from hydrabench.reporting.comparison import Tolerance, compare
from hydrabench.reporting.evaluations import read_evaluation


@pytest.fixture
def kept(tmp_path, write_run):
    """Write the baseline of some runs; return its folder and the runs as the gate compares them."""

    def keep(*runs):
        evaluations = [read_evaluation(run) for run in runs]
        folder = tmp_path / "baseline"
        folder.mkdir(exist_ok=True)
        for name, content in baseline_files(evaluations, {}).items():
            (folder / name).write_bytes(content)
        return folder, [ledger_of(evaluation) for evaluation in evaluations]

    return keep


@pytest.mark.parametrize("kind", EVALUATORS)
def test_every_evaluator_has_a_baseline_that_its_own_run_passes(tmp_path, write_run, kept, kind):
    if kind not in ("clean", "smoothing", "pgd", "autoattack") and EVALUATORS[kind].claims != "lower":
        pytest.skip("the fixture writes no records of it")
    folder, ledgers = kept(write_run(tmp_path / "run", kind, wrong=[1], fails=[2, 5]))
    (found,) = read_baseline(folder)
    assert (found.network, found.protocol, found.images) == ("dense", ledgers[0].protocol, ledgers[0].images)
    assert verdicts(found, found.lines) == verdicts(ledgers[0], ledgers[0].lines)
    verdict = compare(ledgers, [found], Tolerance())
    assert verdict.outcome == "passed"
    assert {one.metric for one in verdict.comparisons} == set(verdicts(found, found.lines))
    assert not any(one.changes for one in verdict.comparisons)


def test_500_images_take_a_few_kilobytes(tmp_path, write_run, kept):
    """The hashes alone, 32 bytes each, would be 16 kB."""
    run = write_run(tmp_path / "run", "crown-ibp", header={"dataset": {"name": "digits", "split": "test", "n": 500}})
    folder, _ = kept(run)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6000
    assert (run.path / "records.jsonl").stat().st_size > 80_000


def test_the_same_runs_are_the_same_bytes(tmp_path, write_run):
    evaluations = [read_evaluation(write_run(tmp_path / kind, kind)) for kind in ("ibp", "pgd")]
    first, again = baseline_files(evaluations, {}), baseline_files(evaluations, {})
    assert first == again
    assert list(first)[-1] == CONTENTS_FILE


def test_a_radius_keeps_all_its_digits_where_a_verdict_rests_on_them(tmp_path, write_run, kept):
    """0.24999999 rounded to four digits would be certified at 0.25."""
    folder, ledgers = kept(write_run(tmp_path / "run", "smoothing", radius=0.24999999))
    (found,) = read_baseline(folder)
    assert {line["radius"] for line in found.lines} == {line["radius"] for line in ledgers[0].lines}
    assert not any(verdicts(found, found.lines)["certified_accuracy@0.25"])


def test_times_votes_and_most_of_the_hash_are_left_out(tmp_path, write_run, kept, sha_of):
    folder, _ = kept(write_run(tmp_path / "run", "smoothing"))
    (path,) = folder.glob("*.gz")
    line = json.loads(gzip.decompress(path.read_bytes()).splitlines()[3])
    assert line["input_sha"] == sha_of(3)[:8]
    assert not {"seconds", "counts", "looks", "selection", "p_value"} & set(line)
    assert path.name == "dense-smoothing-cohen-1-sigma-0.25.jsonl.gz"


def test_two_runs_of_the_same_are_refused(tmp_path, write_run):
    runs = [read_evaluation(write_run(tmp_path / name, "ibp")) for name in "ab"]
    with pytest.raises(LedgerError, match=r"a and .*b are both ibp@1 at L∞ 8/255 of dense on digits test"):
        baseline_files(runs, {})
    other = replace(runs[1], checkpoint=replace(runs[1].checkpoint, name="other"))
    assert len(baseline_files([runs[0], other], {})) == 3


def damage_ledger(folder):
    (path,) = folder.glob("*.gz")
    path.write_bytes(path.read_bytes()[:-3])


def remove_ledger(folder):
    next(folder.glob("*.gz")).unlink()


def edit_manifest(**changes):
    def edit(folder):
        manifest = json.loads((folder / CONTENTS_FILE).read_text())
        manifest["ledgers"][0] |= changes
        (folder / CONTENTS_FILE).write_text(json.dumps(manifest))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_ledger, r"was altered; make it again with hydrabench baseline"),
        (remove_ledger, r"gz cannot be read: "),
        (edit_manifest(file="../elsewhere.gz"), "names the file '../elsewhere.gz', outside its folder"),
        (edit_manifest(dataset={"name": "digits", "split": "test", "n": 9}), "holds 10 records, .* says 9"),
        (edit_manifest(settings={"kind": "mine"}), "was made by 'mine', which this version does not have"),
        (edit_manifest(network=None), "network: "),
        (lambda folder: (folder / CONTENTS_FILE).write_text("{}"), "has schema None, this version reads"),
        (lambda folder: (folder / CONTENTS_FILE).write_text("[]"), "has schema None, this version reads"),
        (lambda folder: (folder / CONTENTS_FILE).write_text("{"), "not readable as JSON"),
        (lambda folder: (folder / CONTENTS_FILE).unlink(), "is no baseline: it holds no baseline.json"),
    ],
)
def test_what_is_damaged_is_refused_in_one_line(tmp_path, write_run, kept, damage, message):
    folder, _ = kept(write_run(tmp_path / "run", "ibp"))
    damage(folder)
    with pytest.raises(LedgerError, match=message) as refused:
        read_baseline(folder)
    assert "\n" not in str(refused.value)


def test_a_ledger_that_unpacks_to_too_much_or_is_cut_off_is_refused(tmp_path, write_run, kept, monkeypatch):
    folder, _ = kept(write_run(tmp_path / "run", "ibp"))
    monkeypatch.setattr("hydrabench.reporting.baseline.LARGEST", 600)
    with pytest.raises(LedgerError, match="is cut off, or larger than 600 bytes"):
        read_baseline(folder)
