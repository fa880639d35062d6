"""Every ledger that must not be reported is refused, in one line that names the folder and the remedy."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hydrabench.errors import LedgerError
from hydrabench.evaluators import EVALUATORS
from hydrabench.ledger import name_images, read_run
from hydrabench.reporting.evaluations import ImageSelection, read_evaluation, read_evaluations


def refusal(*runs):
    """The message with which these runs, read back from disk, are refused."""
    with pytest.raises(LedgerError) as caught:
        read_evaluations([read_run(run.path) for run in runs])
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("kind", EVALUATORS)
def test_a_complete_run_is_read_with_its_records_in_order(tmp_path, write_run, kind):
    run = write_run(tmp_path / "run", kind, edit=lambda records: records[::-1])
    (found,) = read_evaluations([read_run(run.path)])
    assert [record["index"] for record in found.records] == list(range(10))
    assert (found.kind, found.images.n, found.checkpoint.name) == (kind, 10, "dense")
    assert (found.threat is None) == (kind in ("clean", "corruptions", "smoothing"))


def test_training_runs_are_passed_over(tmp_path, write_run):
    training = write_run(tmp_path / "train", "pgd", header={"command": "train"}, finish=False)
    evaluation = write_run(tmp_path / "pgd", "pgd")
    assert [found.path for found in read_evaluations([training, evaluation])] == [evaluation.path]
    assert "no evaluation among 1 run folder; make one with hydrabench attack" in refusal(training)


def test_a_run_that_has_not_ended_is_refused(tmp_path, write_run):
    run = write_run(tmp_path / "run", "pgd", finish=False)
    message = refusal(run)
    assert str(run.path) in message
    assert "not complete (status 'running'); continue it with --resume" in message


def test_missing_records_are_refused_by_image(tmp_path, write_run):
    run = write_run(tmp_path / "run", "pgd", edit=lambda records: [r for r in records if r.index not in (3, 7)])
    assert f"{run.path} has no record of images 3, 7, of 10 images; run the same command again" in refusal(run)


def test_duplicate_records_are_refused_by_image(tmp_path, write_run):
    run = write_run(tmp_path / "run", "pgd", edit=lambda records: [*records, records[4]])
    assert f"{run.path} holds more than one record of image 4, of 10" in refusal(run)


def test_records_beyond_the_selection_are_refused(tmp_path, write_run):
    run = write_run(tmp_path / "run", "pgd", edit=lambda records: [*records, replace(records[0], index=10)])
    assert f"{run.path} holds 11 records but selects 10 images" in refusal(run)


@pytest.mark.parametrize("name", ["records.jsonl", "summary.json"])
def test_a_finished_run_of_which_a_file_is_gone_is_refused(tmp_path, write_run, name):
    run = write_run(tmp_path / "run", "pgd")
    (run.path / name).unlink()
    assert f"{run.path} is not complete (status 'complete', {name} is gone); continue it with --resume" in refusal(run)


def test_a_ledger_that_was_altered_is_refused(tmp_path, write_run):
    run = write_run(tmp_path / "run", "pgd")
    run.records_path.write_text(run.records_path.read_text().replace('"seconds": 0.01', '"seconds": 0.02', 1))
    assert f"{run.records_path} has SHA-256" in refusal(run)
    assert "its summary.json says" in refusal(run)


def test_a_record_without_its_verdict_is_refused(tmp_path, write_run, replace_ledger):
    run = write_run(tmp_path / "run", "pgd")
    replace_ledger(run, run.records_path.read_text().replace('"robust"', '"robustt"', 1))
    assert f"{run.path}: the record of image 0 lacks 'robust'; has a field 'robustt'" in refusal(run)


@pytest.mark.parametrize("said", [0.9, None, "high"])
def test_a_summary_that_its_records_do_not_bear_out_is_refused(tmp_path, write_run, said):
    run = write_run(tmp_path / "run", "ibp", fails=[0, 1])
    change_json(run.path / "summary.json", lambda value: value["metrics"]["verified_accuracy"].update(value=said))
    assert "verified_accuracy = " in refusal(run)
    assert "records.jsonl gives 0.8; one was altered" in refusal(run)


def test_a_summary_without_metrics_is_refused(tmp_path, write_run):
    run = write_run(tmp_path / "run", "ibp")
    change_json(run.path / "summary.json", lambda value: value.update(metrics=[]))
    assert "says clean_accuracy = None" in refusal(run)


@pytest.mark.parametrize("key", ["input_sha", "label"])
def test_mixed_inputs_are_refused_naming_both_runs_and_the_image(tmp_path, write_run, sha_of, key):
    """Even between different checkpoints: their columns would compare different images."""
    first = write_run(tmp_path / "a", "pgd")
    other = {"input_sha": sha_of("x"), "label": 99}[key]

    def alter(records):
        return [replace(record, **{key: other}) if record.index == 6 else record for record in records]

    second = write_run(tmp_path / "b", "ibp", name="sparse", edit=alter, fails=[6])
    what = {"input_sha": "pixels", "label": "labels"}[key]
    assert f"{first.path} and {second.path} hold different {what} for image 6 of digits test" in refusal(second, first)


def test_the_same_index_of_another_split_is_another_image(tmp_path, write_run, sha_of):
    first = write_run(tmp_path / "a", "pgd")
    other = {"dataset": {"name": "digits", "split": "validation", "n": 10}}

    def alter(records):
        return [replace(record, input_sha=sha_of(f"other-{record.index}")) for record in records]

    assert len(read_evaluations([first, write_run(tmp_path / "b", "pgd", header=other, edit=alter)])) == 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda header: header["checkpoint"].pop("sha256"), "checkpoint.sha256: is required"),
        (lambda header: header["dataset"].update(n=0), "dataset.n: input should be greater than 0"),
        (lambda header: header.pop("precision"), "precision: is required"),
        (
            lambda header: header["settings"].update(kind="fgsm"),
            "settings.kind is 'fgsm', this version reads alpha-crown, apgd, autoattack",
        ),
        (lambda header: header["settings"].pop("epsilon"), "settings.epsilon: is required"),
        (lambda header: header["settings"].update(epsilon="8"), "write 8/255"),
        (lambda header: header["settings"].update(norm="l7"), "settings.norm is 'l7', this version reads linf, l2"),
    ],
)
def test_a_header_without_what_the_table_needs_is_refused(tmp_path, write_run, change, complaint):
    run = write_run(tmp_path / "run", "pgd")
    change_json(run.path / "run.json", change)
    message = refusal(run)
    assert complaint in message
    assert str(run.path) in message


def test_a_smoothing_header_must_say_its_noise(tmp_path, write_run):
    run = write_run(tmp_path / "run", "smoothing")
    change_json(run.path / "run.json", lambda header: header["settings"].pop("sigma"))
    assert "settings.sigma: is required" in refusal(run)


def test_long_lists_of_images_are_cut_and_counted():
    assert name_images([3]) == "image 3"
    assert name_images(range(10)) == "images 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert name_images(range(12)) == "images 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_old_smoothing_records_without_the_later_fields_are_readable(tmp_path, write_run, replace_ledger):
    """As ledgers had them before there were other modes than Cohen's."""
    run = write_run(tmp_path / "run", "smoothing")
    old = ("index", "input_sha", "label", "prediction", "seconds", "selected", "count", "samples", "p_lower", "radius",
           "abstain")  # fmt: skip
    lines = [{key: record[key] for key in old} for record in run.records()]
    replace_ledger(run, "".join(json.dumps(line) + "\n" for line in lines))
    assert len(read_evaluation(run).records) == 10
    lines[3].pop("p_lower")
    replace_ledger(run, "".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(LedgerError, match=r"the record of image 3 lacks 'p_lower'"):
        read_evaluation(run)


def test_images_chosen_one_by_one_are_no_sample(tmp_path, write_run):
    dataset = {"name": "digits", "split": "test", "n": 10, "indices": list(range(10))}
    run = write_run(tmp_path / "run", "smoothing", header={"dataset": dataset})
    with pytest.raises(LedgerError, match=r"chosen one by one \(--index\), which are no sample .*; leave it out"):
        read_evaluation(run)


def test_a_ledger_from_before_cascades_is_read(tmp_path, write_run, replace_ledger):
    run = write_run(tmp_path / "run", "ibp")
    replace_ledger(run, run.records_path.read_text().replace(', "method": null', ""))
    assert all("method" not in record for record in read_evaluations([read_run(run.path)])[0].records)


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        (ImageSelection("digits", "test", 1), "digits test, first image"),
        (ImageSelection("digits", "test", 2), "digits test, first 2 images"),
        (ImageSelection("cifar10", "test", 10_000), "cifar10 test, first 10,000 images"),
        (ImageSelection("cifar10", "test", 1, "every 20th"), "cifar10 test, 1 image (every 20th)"),
        (ImageSelection("cifar10", "test", 500, "every 20th"), "cifar10 test, 500 images (every 20th)"),
    ],
)
def test_a_selection_of_one_image_is_no_plural(selection, text):
    assert str(selection) == text
