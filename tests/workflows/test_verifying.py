"""A sample of a run's records, computed again: what is as it was, what was altered, what cannot be compared."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from hydrabench.cli import main
from hydrabench.errors import CheckpointError, ConfigError, LedgerError
from hydrabench.evaluators import AutoAttackSettings, CleanSettings, PgdSettings, SmoothingSettings, VerifiedSettings
from hydrabench.files import sha256_of
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject, with_parent
from hydrabench.workflows.evaluation.reuse import reuse_settings
from hydrabench.workflows.verifying import NetworkSource, verify_run

CASES = {
    "clean": (CleanSettings(), 130),
    "pgd": (PgdSettings(epsilon="8/255", steps=3), 130),
    "pgd-v1": (PgdSettings(epsilon="8/255", steps=3, version=1), 30),
    "autoattack": (AutoAttackSettings(epsilon="128/255"), 2),
    "autoattack-v1": (AutoAttackSettings(epsilon="128/255", version=1), 2),
    "crown-ibp": (VerifiedSettings(kind="crown-ibp", epsilon="1/255"), 130),
    "cascade": (VerifiedSettings(kind="cascade", epsilon="1/255"), 30),
    "smoothing": (SmoothingSettings(sigma=0.1, n0=10, samples=200), 6),
    "adaptive": (SmoothingSettings(sigma=0.1, n0=10, samples=200, mode="adaptive"), 6),
    "adaptive as of version 2": (SmoothingSettings(sigma=0.1, n0=10, samples=200, mode="adaptive", version=2), 6),
    "adaptive as of version 4": (SmoothingSettings(sigma=0.1, n0=10, samples=200, mode="adaptive", version=4), 6),
}


@pytest.fixture(scope="module")
def runs(line, cpu, tmp_path_factory):
    """A finished run of every case, as a pipeline lays it out: runs/evaluations/NAME/CASE, checkpoint in runs/NAME."""
    root = tmp_path_factory.mktemp("verified") / "runs"
    shutil.copytree(line.train, root / "net")
    shutil.copytree(line.finetune, root / "pruned")
    subject = open_subject(str(root / "net"), options=cpu)
    for name, (settings, n) in CASES.items():
        evaluate(subject, settings, root / "evaluations" / name, options=cpu, n=n)
    return root


def alter(run, index, **fields):
    """Write other values into one record, and all hashes anew: what only computing it again can find."""
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    lines[index] |= fields
    (run / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((run / "summary.json").read_text()) | {"records_sha256": sha256_of(run / "records.jsonl")}
    (run / "summary.json").write_text(json.dumps(summary))
    return lines[index]


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_record_is_computed_again_as_it_was(runs, cpu, name):
    n = CASES[name][1]
    found = verify_run(runs / "evaluations" / name, options=cpu, sample=10).records
    assert not [one for one in found if one.differences]
    indices = [one.index for one in found]
    assert len(indices) == min(10, n)
    assert indices == sorted(set(indices))
    assert set(indices) <= set(range(n))


def test_the_sample_depends_on_its_seed_alone(runs, cpu):
    run = runs / "evaluations" / "clean"
    first, again, other = (
        [one.index for one in verify_run(run, options=cpu, sample=9, seed=s).records] for s in (0, 0, 1)
    )
    assert first == again != other


def test_certificates_that_were_reused_are_computed_again_from_the_run_of_the_parent(runs, cpu, tmp_path):
    parent = runs / "evaluations" / "smoothing"
    child = with_parent(open_subject(str(runs / "pruned"), options=cpu), parent, str(runs / "net"))
    settings = reuse_settings(child.parent, {"kind": "smoothing", "reuse_samples": 100})
    evaluate(child, settings, tmp_path / "reused", options=cpu, n=6)
    ref = str(runs / "pruned")
    found = verify_run(
        tmp_path / "reused", options=cpu, network=NetworkSource(ref, reuse=parent, parent=str(runs / "net"))
    ).records
    assert [one.differences for one in found] == [()] * 6
    with pytest.raises(LedgerError, match=r"reuses the certificates of .*; name that run with --reuse"):
        verify_run(tmp_path / "reused", options=cpu, network=NetworkSource(ref))
    with pytest.raises(ConfigError, match=r"reuses no certificates; leave --reuse out"):
        verify_run(parent, options=cpu, network=NetworkSource(reuse=parent))


@pytest.mark.parametrize(
    ("name", "wanted", "fields", "said"),
    [
        ("pgd", {"robust": True}, {"margin": 9.5}, "margin was 9.5 and is now"),
        ("crown-ibp", {"verified": False}, {"lower": -9.5}, "lower was -9.5 and is now"),
        ("smoothing", {}, {"count": 1, "counts": []}, "count was 1 and is now"),
    ],
)
def test_an_altered_record_is_found_and_the_command_exits_1(runs, tmp_path, name, wanted, fields, said):
    """Altered so that it fits its own hash and contradicts nothing."""
    run = tmp_path / "evaluations" / "copy"
    shutil.copytree(runs / "evaluations" / name, run)
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    index = next(i for i, record in enumerate(records) if wanted.items() <= record.items())
    alter(run, index, **fields)
    arguments = ["verify", str(run), "--ckpt", str(runs / "net"), "--device", "cpu", "--sample", "200"]
    result = CliRunner().invoke(main, arguments)
    n = len(records)
    assert result.exit_code == 1
    assert f"error: 1 of {n} records of {run} are not what computing them again gives" in result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "as recorded" not in line]
    assert line.startswith(f"image {index}: ")
    assert said in line
    printed = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert (printed["compared"], printed["differing"]) == (n, 1)
    assert printed["records"][index]["differences"]


def test_a_turned_verdict_is_found_in_an_attack_by_blocks(runs, cpu, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(runs / "evaluations" / "autoattack", run)
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    index = next(i for i, record in enumerate(records) if record["prediction"] == record["label"])
    turned = {"robust": True, "broken_by": None, "margin": None}
    if records[index]["robust"]:
        turned = {"robust": False, "broken_by": "square", "margin": -1.0}
    alter(run, index, **turned)
    found = verify_run(run, options=cpu, network=NetworkSource(str(runs / "net"))).records
    assert [one.index for one in found if one.differences] == [index]
    assert "robust was" in str(found[index])


def test_what_cannot_be_verified_is_refused(runs, line, cpu, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(runs / "evaluations" / "pgd", run)
    with pytest.raises(CheckpointError, match=r"the checkpoint of .*copy, .* is not to be found; name it with --ckpt"):
        verify_run(run, options=cpu)
    with pytest.raises(
        CheckpointError, match=r"has SHA-256 .*, .*copy was made with .*; name that checkpoint with --ckpt"
    ):
        verify_run(run, options=cpu, network=NetworkSource(str(line.finetune)))
    with pytest.raises(ConfigError, match="--sample 0: give 1 or more records"):
        verify_run(run, options=cpu, sample=0)
    with pytest.raises(LedgerError, match="train is no finished run of attack or certify"):
        verify_run(line.train, options=cpu)
    with (run / "records.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(LedgerError, match=r"records\.jsonl has SHA-256 .*, its summary\.json says"):
        verify_run(run, options=cpu, network=NetworkSource(str(line.train)))
