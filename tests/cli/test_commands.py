"""The commands, end to end on the real digits: what they print, and where they write."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from hydrabench.checkpoints import load_checkpoint
from hydrabench.files import sha256_of
from hydrabench.reporting import summarize

EPOCH = ("--set", "train.epochs=1")


@pytest.fixture
def succeed(hydrabench):
    def run(*arguments):
        result = hydrabench(*arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return run


def test_the_whole_line_command_by_command(succeed, here, recipe):
    """train, prune, finetune, the LWM twin, attack, certify, report: each finds what the one before it wrote."""
    succeed("train", "--config", recipe, "--out", "r/dense")
    succeed("prune", "--config", recipe, "--ckpt", "r/dense", "--density", 0.05, "--out", "r/pruned")
    succeed("finetune", "--config", recipe, "--ckpt", "r/pruned", "--out", "r/final")
    succeed("finetune", "--config", recipe, "--ckpt", "r/dense", "--lwm", "--density", 0.05, "--out", "r/lwm")
    for name in ("dense", "final", "lwm"):
        given = ("--ckpt", f"r/{name}", "--epsilon", "1/255", "-n", 30)
        succeed("attack", *given, "--steps", 3, "--out", f"e/{name}/pgd")
        succeed("certify", *given, "--method", "ibp", "--out", f"e/{name}/ibp")
    printed = succeed("report", "e", "--out", "report")
    assert printed.endswith("report written to report; open report/index.html\n")
    table = (here / "report" / "leaderboard.csv").read_text()
    for name in ("dense", "final", "lwm"):
        assert name in printed
        assert f"r/{name}" in table
    files = {"leaderboard.md", "leaderboard.csv", "leaderboard.tex", "summary.json", "index.html", "figures"}
    assert {path.name for path in (here / "report").iterdir()} == files
    headers = {name: load_checkpoint(here / "r" / name / "checkpoint.safetensors").header for name in
               ("dense", "pruned", "final", "lwm")}  # fmt: skip
    assert {name: (h.phase, h.density) for name, h in headers.items()} == {
        "dense": ("train", 1),
        "pruned": ("prune", 0.05),
        "final": ("finetune", 0.05),
        "lwm": ("lwm", 0.05),
    }


def test_json_is_one_document_and_all_there_is_on_stdout(succeed, here, recipe, dense):
    commands = {
        "train": ("--config", recipe, *EPOCH),
        "prune": ("--config", recipe, "--ckpt", dense, "--density", 0.1),
        "finetune": ("--config", recipe, "--ckpt", dense, "--lwm", "--density", 0.1),
        "attack": ("--ckpt", dense, "--attack", "clean", "-n", 20),
        "certify": ("--ckpt", dense, "--method", "ibp", "-n", 20),
        "pipeline": ("--config", recipe, *EPOCH),
        "report": (here / "attack",),
    }
    for command, arguments in commands.items():
        found = json.loads(
            succeed(command, *arguments, "--out", f"{command}{'-out' * (command == 'report')}", "--json")
        )
        if command in ("pipeline", "report"):
            folder = here / ("pipeline/report" if command == "pipeline" else "report-out")
        else:
            folder = here / command
        assert found == json.loads((folder / "summary.json").read_text()), command


def test_certify_exports_what_other_verifiers_need_beside_its_own_run(succeed, here, dense):
    pytest.importorskip("onnxscript")
    given = ("--method", "ibp", "-n", 20, "--out", "run", "--export-vnnlib", "vnn", "--vnnlib-timeout", 60, "--json")
    summary = json.loads(succeed("certify", "--ckpt", dense, *given))
    rows = [row.split(",") for row in (here / "vnn" / "instances.csv").read_text().splitlines()]
    assert len(rows) == summary["metrics"]["clean_accuracy"]["count"]
    assert all((here / "vnn" / network).is_file() and timeout == "60" for network, _, timeout in rows)
    assert {path.name for path in (here / "vnn" / "vnnlib").iterdir()} == {Path(path).name for _, path, _ in rows}


@pytest.mark.parametrize("rigor", ["sound", "deployed"])
def test_rigor_is_a_protocol_of_its_own(succeed, here, dense, rigor):
    lines = succeed("certify", "--ckpt", dense, "--rigor", rigor, "-n", 20, "--out", "run").splitlines()
    assert lines[0] == f"crown-ibp-{rigor}@1 of here/dense at L∞ 8/255, 20 images, in run"
    assert json.loads((here / "run" / "run.json").read_text())["settings"]["rigor"] == rigor


def test_without_json_the_summary_is_one_line_per_metric(succeed, dense):
    lines = succeed("certify", "--ckpt", dense, "--method", "ibp", "-n", 20, "--out", "run").splitlines()
    assert lines[0] == "ibp@1 of here/dense at L∞ 8/255, 20 images, in run"
    assert [line.split()[0] for line in lines[1:]] == ["clean_accuracy", "verified_accuracy"]
    assert lines[2].split()[1] == "0.0000"  # random weights verify nothing at 8/255


def test_a_mean_over_one_image_has_no_upper_end_and_is_printed_without_an_interval(succeed, dense):
    few = ("--method", "smoothing", "--n0", 5, "--samples", 20, "--radii", "0,0.1", "-n", 1, "--out", "run")
    lines = succeed("certify", "--ckpt", dense, *few).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "certified_accuracy@0",
        "certified_accuracy@0.1",
        "average_certified_radius",
    ]
    assert "[" in lines[1]
    assert "[" not in lines[3]


def test_set_overrides_the_recipe_and_the_run_says_so(succeed, here, recipe):
    succeed("train", "--config", recipe, *EPOCH, "--set", "seed=7", "--set", "data.flip=true", "--out", "run")
    said = json.loads((here / "run" / "run.json").read_text())["recipe"]
    assert (said["train"]["epochs"], said["seed"], said["data"]["flip"]) == (1, 7, True)
    assert len((here / "run" / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("density", ["0.12345678", "0.00001"])
def test_a_density_is_taken_to_its_last_digit(succeed, here, recipe, dense, density):
    succeed("prune", "--config", recipe, "--ckpt", dense, "--density", density, "--out", "run")
    assert load_checkpoint(here / "run" / "checkpoint.safetensors").header.density == float(density)


def test_runs_go_to_folders_of_their_own_by_default(succeed, here, recipe, dense, write_checkpoint):
    """Two sources and two densities must not meet in one folder."""
    succeed("train", "--config", recipe, *EPOCH)
    for density in (0.1, 0.05):
        given = ("--config", recipe, "--density", density)
        succeed("prune", *given, "--ckpt", dense)
        succeed("finetune", "--config", recipe, "--ckpt", f"runs/tiny/prune-{density}")
        succeed("finetune", *given, "--ckpt", dense, "--lwm")
    succeed("attack", "--ckpt", dense, "--attack", "clean", "-n", 3)
    succeed("certify", "--ckpt", dense, "-n", 3)
    assert {path.parent.relative_to(here / "runs").as_posix() for path in here.rglob("run.json")} == {
        "tiny/train",
        "tiny/prune-0.1",
        "tiny/prune-0.05",
        "tiny/finetune/prune-0.1",
        "tiny/finetune/prune-0.05",
        "tiny/lwm-0.1/dense",
        "tiny/lwm-0.05/dense",
        "evaluations/here/dense/clean-v1-n3",
        "evaluations/here/dense/crown-ibp-v1-8_255-n3",
    }


def test_resume_says_that_a_complete_run_is_complete_and_prints_its_summary_again(hydrabench, recipe, dense):
    for command in (
        ("train", "--config", recipe, *EPOCH, "--out", "trained"),
        ("attack", "--ckpt", dense, "--attack", "clean", "-n", 20, "--out", "attacked"),
    ):
        first = hydrabench(*command)
        again = hydrabench(*command, "--resume")
        assert (again.exit_code, again.stdout) == (0, first.stdout)
        assert again.stderr == f"{command[-1]} is complete already\n"


def test_the_data_folder_may_come_from_the_environment(hydrabench, dense, monkeypatch):
    monkeypatch.setenv("HYDRABENCH_DATA", "nowhere")
    result = hydrabench("attack", "--ckpt", dense, "--out", "run")
    assert result.exit_code == 1
    assert "data folder 'nowhere' does not exist" in result.stderr


def test_a_contradiction_between_ledgers_exits_1_and_names_the_image(hydrabench, here, dense):
    """Two ledgers altered to say of an image that it is verified, and broken at the same radius."""
    for command, kind in (("attack", "--attack=pgd"), ("certify", "--method=ibp")):
        given = ("--ckpt", dense, "--epsilon", "1/255", "-n", 20, "--out", f"runs/{command}")
        assert hydrabench(command, kind, *given).exit_code == 0
    assert hydrabench("report", "runs", "--out", "before").exit_code == 0
    index = alter(here / "runs" / "attack", "pgd", {"robust": False, "broken_by": "pgd-ce", "step": 1, "margin": -0.1})
    assert alter(here / "runs" / "certify", "ibp", {"verified": True, "lower": 0.1}) == index
    result = hydrabench("report", "runs", "--out", "after")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert f"image {index};" in result.stderr
    assert {path.name for path in (here / "after").iterdir()} == {"contradiction"}, "what shows it again, and no table"


def alter(folder, kind, changes):
    """Change the record of the first image that is classified rightly, and make the summary agree."""
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    chosen = next(record for record in records if record["prediction"] == record["label"])
    chosen |= changes
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    known = {**summarize(kind, records, None), "records_sha256": sha256_of(folder / "records.jsonl")}
    summary = json.loads((folder / "summary.json").read_text()) | known
    (folder / "summary.json").write_text(json.dumps(summary))
    return chosen["index"]


# Smoothing -------------------------------------------------------------------------------------

FEW = ("--method", "smoothing", "--n0", 5, "--samples", 300)


def test_several_sigmas_make_one_run_each_and_one_summary_of_all(succeed, here, dense):
    given = ("certify", "--ckpt", dense, *FEW, "--mode", "adaptive", "--sigma", "0.12,0.25", "--radii", "auto", "-n", 2)
    found = json.loads(succeed(*given, "--out", "out", "--json"))
    # All 300 agree: 0.001^(1/300) = 0.977, 2.0 deviations: 0.24 and 0.499.
    names = ("r0-v5-sigma0.12", "r0+0.25-v5-sigma0.25")
    folders = [f"out/smoothing-adaptive-n0_5-n300-{name}" for name in names]
    assert list(found) == folders
    for folder, summary in found.items():
        assert summary == json.loads((here / folder / "summary.json").read_text())
    assert sum("of here/dense" in line for line in succeed(*given).splitlines()) == 2
    assert len(list((here / "runs" / "evaluations").rglob("run.json"))) == 2


def test_a_folder_in_use_of_a_later_sigma_is_noticed_before_anything_runs(hydrabench, succeed, here, dense):
    given = ("certify", "--ckpt", dense, *FEW, "-n", 2, "--out", "out")
    succeed(*given[:-1], "out/smoothing-cohen-n0_5-n300-v4-sigma0.25", "--sigma", "0.25")
    refused = hydrabench(*given, "--sigma", "0.12,0.25")
    assert refused.exit_code == 1
    assert "sigma0.25 already holds a run; continue it with --resume or choose a new --out" in refused.output
    assert [path.name for path in (here / "out").iterdir()] == ["smoothing-cohen-n0_5-n300-v4-sigma0.25"]
    resumed = json.loads(succeed(*given, "--sigma", "0.12,0.25", "--resume", "--json"))
    assert [summary["n"] for summary in resumed.values()] == [2, 2]


def test_certify_says_that_it_compiles_before_it_does(hydrabench, dense, monkeypatch):
    from hydrabench.smoothing import forward
    from hydrabench.workflows.training.forward_pass import COMPILING

    monkeypatch.setattr(forward.torch, "compile", lambda network: network)
    given = ("certify", "--ckpt", dense, *FEW, "-n", 1)
    assert COMPILING in hydrabench(*given, "--compile", "--out", "compiled").stderr.splitlines()
    assert "compil" not in hydrabench(*given, "--out", "plain").stderr


def test_radii_are_printed_with_the_linf_radius_that_they_imply(succeed, dense):
    """0.5 / 8 of 255 grey levels is 15.94."""
    lines = succeed("certify", "--ckpt", dense, *FEW, "--radii", "0.5", "-n", 2, "--out", "run").splitlines()
    assert lines[1].endswith("(L∞ 15.94/255)")
    assert lines[2].split()[0] == "average_certified_radius"


def test_prediction_reports_accuracy_and_abstentions(succeed, here, dense):
    lines = succeed("certify", "--ckpt", dense, *FEW, "--predict", "-n", 3, "--out", "runs/predict").splitlines()
    assert lines[0].startswith("smoothing-predict-n0_5-n300@4 of")
    assert [line.split()[0] for line in lines[1:]] == ["smoothed_accuracy", "abstained"]
    succeed("report", "runs", "--out", "report")
    page = (here / "report" / "leaderboard.md").read_text()
    assert "σ=0.25 accuracy" in page
    assert "PREDICT of Cohen et al." in page


def test_explicit_images_are_evaluated_and_not_reported(succeed, hydrabench, here, dense):
    succeed("certify", "--ckpt", dense, *FEW, "--index", "7,2", "--index", 4, "--out", "runs/some")
    records = [json.loads(line) for line in (here / "runs" / "some" / "records.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == [2, 4, 7]
    result = hydrabench("report", "runs", "--out", "report")
    assert result.exit_code == 1
    assert "some holds images that were chosen one by one (--index)" in result.stderr


def test_without_out_no_choice_of_images_is_in_the_way_of_another_nor_of_a_report(succeed, here, dense):
    for command in (("attack", "--steps", 2), ("certify", "--method", "ibp")):
        for chosen in (("-n", 3), ("-n", 20), ("--precision", "float64", "-n", 3)):
            succeed(*command, "--ckpt", dense, "--epsilon", "1/255", *chosen)
    for index in ("7", "7,2"):
        succeed("certify", "--method", "ibp", "--ckpt", dense, "--epsilon", "1/255", "--index", index)
    assert len(list((here / "runs").rglob("run.json"))) == 8
    succeed("report", "runs/evaluations", "--out", "report")
    again = (
        "certify",
        "--method",
        "ibp",
        "--ckpt",
        dense,
        "--epsilon",
        "1/255",
        "--index",
        "2,7",
        "--resume",
        "--json",
    )
    assert json.loads(succeed(*again))["n"] == 2
    assert len(list((here / "runs").rglob("run.json"))) == 8


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        (("--method", "symbolic"), "symbolic@1"),
        (("--method", "crown", "--norm", "l2", "--epsilon", "0.1"), "crown@1"),
        (("--method", "cascade", "--methods", "ibp,crown"), "cascade-ibp+crown@1"),
    ],
)
def test_certify_knows_the_tighter_methods_and_l2_balls(hydrabench, here, options, protocol):
    result = hydrabench("certify", "--ckpt", "digits-crown-ibp-99", *options, "-n", 10, "--out", "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"]["verified_accuracy"]["count"] <= 10
    assert json.loads((here / "run" / "run.json").read_text())["protocol"] == protocol


@pytest.mark.skipif(not (find_spec("auto_LiRPA") and find_spec("onnx")), reason="needs auto_LiRPA and onnx")
def test_a_cascade_may_end_with_alpha_crown(hydrabench, here):
    """At 24/255 the search proves images of this network that full CROWN does not; a report reads their ledger."""
    methods = ("--methods", "ibp,crown-ibp,crown,alpha-crown", "--iterations", 10)
    options = ("--method", "cascade", *methods, "--epsilon", "24/255", "-n", 20, "--export-vnnlib", "vnn")
    result = hydrabench("certify", "--ckpt", "digits-crown-ibp", *options, "--out", "runs/run")
    assert result.exit_code == 0, result.output
    header = json.loads((here / "runs" / "run" / "run.json").read_text())
    assert header["protocol"] == "cascade-ibp+crown-ibp+crown+alpha-crown-i10@2"
    records = [json.loads(line) for line in (here / "runs" / "run" / "records.jsonl").read_text().splitlines()]
    assert {record["method"] for record in records} >= {"ibp", "crown-ibp", "alpha-crown", None}
    assert all(record["verified"] == (record["method"] is not None) for record in records)
    assert (here / "vnn" / "instances.csv").read_text().count("\n") >= 15
    assert hydrabench("report", "runs", "--out", "report").exit_code == 0
    page = (here / "report" / "leaderboard.md").read_text()
    assert "the first of ibp, crown-ibp, crown, alpha-crown that proves it; " in page
    assert ", iterations 10, " in page


def test_threads_are_those_that_were_asked_for(succeed, monkeypatch):
    asked = []
    monkeypatch.setattr("hydrabench.runtime.use_threads", asked.append)
    succeed("certify", "--ckpt", "digits-crown-ibp-99", "-n", 3, "--threads", 3, "--out", "three")
    succeed("certify", "--ckpt", "digits-crown-ibp-99", "-n", 3, "--out", "default")
    assert asked == [3]
