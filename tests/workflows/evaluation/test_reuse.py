"""`certify --reuse` on the digits of the zoo: what a pruned network takes over from its parent, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from hydrabench.checkpoints import load_checkpoint, resolve
from hydrabench.cli import main
from hydrabench.errors import CheckpointError
from hydrabench.files import sha256_of
from hydrabench.workflows.evaluation.reuse import open_parent

COMMON = ("certify", "--method", "smoothing", "--json", "--device", "cpu")
PARENT = ("--sigma", 0.12, "--samples", 1500, "--n0", 20, "--radii", "0,0.1", "--seed", 3, "-n", 12)


def hydrabench(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def certify(*words):
    result = hydrabench(*COMMON, *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Twelve images of the dense network."""
    folder = tmp_path_factory.mktemp("parent") / "run"
    certify("--ckpt", "digits-trades", *PARENT, "--out", folder)
    return folder


def lines(run):
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


def edited(run, folder, edit=None, *, header=None):
    """A copy of a run with other records, or another header."""
    shutil.copytree(run, folder)
    if edit is not None:
        records = lines(folder)
        edit(records)
        (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        summary = json.loads((folder / "summary.json").read_text())
        summary |= {"records_sha256": sha256_of(folder / "records.jsonl")}
        (folder / "summary.json").write_text(json.dumps(summary))
    if header is not None:
        values = json.loads((folder / "run.json").read_text())
        header(values)
        (folder / "run.json").write_text(json.dumps(values))
    return folder


def test_a_pruned_network_is_certified_on_its_parents_images_with_fewer_passes(parent, tmp_path):
    out = tmp_path / "child"
    summary = certify("--ckpt", "digits-trades-90", "--reuse", parent, "--reuse-samples", 400, "--out", out)
    assert summary["n"] == 12
    assert summary["metrics"]["certified_accuracy@0"]["count"] >= 10
    header = json.loads((out / "run.json").read_text())
    assert header["protocol"] == "smoothing-reuse-n0_20-n1500-m400-r0+0.1-s3@4"
    assert header["settings"]["mode"] == "reused"
    assert header["settings"]["parent_mode"] == "cohen"
    assert header["checkpoint"]["name"] == "digits-trades-90"
    assert header["reused"]["checkpoint"] == "digits-trades"
    records, known = lines(out), lines(parent)
    assert [record["input_sha"] for record in records] == [record["input_sha"] for record in known]
    assert [record["selected"] for record in records] == [record["selected"] for record in known]
    assert all(a["parent_looks"] == [[b["samples"], b["count"]]] for a, b in zip(records, known, strict=True))
    assert all(record["p_lower"] < record["parent_p_lower"] for record in records)
    assert sum(record["passes"] for record in records) < 12 * 1520


def test_the_noise_of_the_parent_may_be_given_as_a_fraction(parent, tmp_path):
    """0.12 is 3/25."""
    certify("--ckpt", "digits-trades-90", "--reuse", parent, "--sigma", "3/25", "-n", 1, "--out", tmp_path / "child")


def test_a_network_loses_no_vote_against_itself(parent, tmp_path):
    certify("--ckpt", "digits-trades", "--reuse", parent, "--out", tmp_path / "same")
    assert {record["lost"] + record["disagreements"] for record in lines(tmp_path / "same")} == {0}


def test_the_same_network_in_16_bits_loses_few_votes(parent, tmp_path):
    """The case in which reuse pays; the parent votes in the precision of its ledger."""
    words = ("--reuse", parent, "--precision", "bfloat16", "--reuse-samples", 1500, "--radii", "0,0.3")
    certify("--ckpt", "digits-trades", *words, "--out", tmp_path / "half")
    records, known = lines(tmp_path / "half"), lines(parent)
    counted = [
        (a["count"] + a["lost"], b["count"]) for a, b in zip(records, known, strict=True) if a["samples"] == 1500
    ]
    assert counted
    assert all(both == alone for both, alone in counted)
    assert sum(record["lost"] for record in records) < 0.01 * sum(record["samples"] for record in records)


def test_reports_keep_reused_certificates_in_columns_of_their_own(parent, tmp_path):
    certify("--ckpt", "digits-trades-90", "--reuse", parent, "--out", tmp_path / "child")
    result = hydrabench("report", parent, tmp_path / "child", "--out", tmp_path / "report", "--json")
    assert result.exit_code == 0, result.output
    board = json.loads(result.stdout)
    protocols = {column["protocol"] for column in board["columns"]}
    assert protocols == {"smoothing-cohen-n0_20-n1500-s3@4", "smoothing-reuse-n0_20-n1500-r0+0.1-s3@4"}
    assert "derived from the certificate of a parent network" in (tmp_path / "report/leaderboard.md").read_text()


def test_a_run_is_resumed_and_another_parent_is_not_taken_for_the_same(parent, tmp_path):
    words = ("--ckpt", "digits-trades-90", "-n", 4, "--out", tmp_path / "child", "--reuse")
    first = certify(*words, parent)
    assert certify(*words, parent, "--resume") == first
    other = edited(parent, tmp_path / "other", lambda records: records[0].update(count=0, looks=[[1500, 0]]))
    result = hydrabench(*COMMON, *words, other, "--resume")
    assert result.exit_code == 1
    assert "cannot resume" in result.stderr
    assert "records_sha256" in result.stderr


def test_the_parents_checkpoint_is_found_by_name_or_named(parent, tmp_path):
    strange = edited(parent, tmp_path / "strange", header=lambda run: run["checkpoint"].update(name="runs/gone"))
    result = hydrabench(*COMMON, "--ckpt", "digits-trades-90", "--reuse", strange, "--out", tmp_path / "child")
    assert result.exit_code == 1
    assert "the parent's checkpoint, 'runs/gone' in " in result.stderr
    assert "name it with --parent REF" in result.stderr
    file = resolve("digits-trades")
    certify("--ckpt", "digits-trades-90", "--reuse", strange, "--parent", file, "-n", 1, "--out", tmp_path / "child")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sigma", 0.25), r"--sigma 0\.25 is not that of .*run, 0\.12, and reuse needs the same noise; leave it out"),
        (("--seed", 0), r"--seed 0 is not that of .*run, 3,"),
        (("--rigor", "discrete"), r"--rigor discrete is not that of .*run, standard,"),
        (("--samples", 900), r"--samples means nothing with --reuse, which takes it from .*run; leave it out"),
        (("--mode", "adaptive"), r"--mode means nothing with --reuse"),
        (("--predict",), r"--mode means nothing with --reuse"),
        (("--reuse-samples", 2000), r"reuse_samples 2000 exceeds the parent's 1500 draws"),
        (("--reuse-samples", 0), r"reuse_samples: input should be greater than 0"),
        (("-n", 13), r"has no record of image 12 \(1 of 13 images are missing there\); choose among its 12 images"),
        (("--index", "3,40"), r"has no record of image 40 \(1 of 2 images"),
        (("--parent", "digits-crown-ibp"), r"digits-crown-ibp has SHA-256 [0-9a-f]{16}….*was made with .*--parent REF"),
        (("--parent", "nowhere.safetensors"), r"no checkpoint at nowhere\.safetensors"),
        (("--precision", "float64"), r"made with precision float32, this run would have float64.*choose --precision"),
    ],
)
def test_what_does_not_go_with_the_parents_run_is_refused_before_anything_runs(parent, tmp_path, words, message):
    out = tmp_path / "child"
    result = hydrabench(*COMMON, "--ckpt", "digits-trades-90", "--reuse", parent, "--out", out, *words)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert re.search(message, result.stderr)
    assert not out.exists()


@pytest.mark.parametrize(
    ("edit", "header", "message"),
    [
        (lambda r: r[5].update(input_sha="f" * 64), None, r"image 5 has another content in .*\(ffffffffffff\)"),
        (lambda r: r[5].update(label=11), None, r"image 5 has another label in .*\(11\) than here"),
        (None, lambda h: h.update(status="running"), r"is not complete \(status 'running'\)"),
        (None, lambda h: h["settings"].update(mode="predict"), r"has mode predict; reuse takes "),
        (None, lambda h: h["settings"].update(mode="reused"), r"has mode reused; reuse takes"),
        (None, lambda h: h["settings"].update(kind="ibp"), r"is no run of certify --method smoothing"),
        (None, lambda h: h.update(noise="Some GPU"), r"made with noise Some GPU, this run would have cpu"),
    ],
)  # fmt: skip
def test_a_parent_that_cannot_be_reused_is_refused(parent, tmp_path, edit, header, message):
    other = edited(parent, tmp_path / "other", edit, header=header)
    result = hydrabench(*COMMON, "--ckpt", "digits-trades-90", "--reuse", other, "--out", tmp_path / "child")
    assert result.exit_code == 1
    assert re.search(message, result.stderr)
    assert not (tmp_path / "child").exists()


def test_options_of_reuse_alone_and_folders_that_are_no_run_are_refused(tmp_path):
    few = (*COMMON, "--ckpt", "digits-trades-90")
    assert "--reuse-samples is for --reuse; without it leave" in hydrabench(*few, "--reuse-samples", 9).stderr
    assert "is not a run folder" in hydrabench(*few, "--reuse", tmp_path).stderr
    other = hydrabench("certify", "--ckpt", "digits-trades-90", "--method", "ibp", "--reuse", tmp_path)
    assert "--reuse is for --method smoothing" in other.stderr


def test_a_child_for_other_images_is_refused(parent, tmp_path):
    known = open_parent(parent, None, device=torch.device("cpu"), dtype=torch.float32)
    child = load_checkpoint(resolve("digits-trades-90"))
    header = child.header.model_copy(update={"dataset": "cifar10"})
    with pytest.raises(
        CheckpointError, match="about a network with dataset digits, this checkpoint has dataset cifar10"
    ):
        known.require_dataset(replace(child, header=header))
