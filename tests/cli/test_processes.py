"""Real processes: killed in the middle and resumed, and two of them under torchrun."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import hydrabench
from hydrabench.cli import main

ROOT = Path(hydrabench.__file__).parents[1]
PATIENCE = 120  # seconds until a process that should have done its work counts as hanging
# As many threads in the processes as here: sums of floats come out the same, bit for bit.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
ENVIRONMENT |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
Arguments = tuple[object, ...]


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_recipe, write_checkpoint) -> Path:
    """A folder with a recipe, a network that withstands 1/255 on most images, and one whose bounds take long."""
    folder = tmp_path_factory.mktemp("made")
    recipe = write_recipe(folder / "recipe.yml", model={"arch": "cifar_model_bn"})
    done = run_here("train", "--config", recipe, "--out", folder / "trained", "--device", "cpu")
    assert done["metrics"]["validation_clean_accuracy"]["value"] > 0.8
    write_checkpoint(folder / "large.safetensors", arch="vgg4_without_maxpool")
    return folder


def run_here(*arguments: object) -> dict[str, Any]:
    """Run one command in this process and return its summary."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def records(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a ledger, without their times."""
    path = folder / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in lines
        if line.endswith("\n")
    ]


def epochs(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without their times."""
    path = folder / "metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def kill_in_the_middle(arguments: Arguments, out: Path, done: Callable[[Path], list[Any]]) -> int:
    """Start a command, kill -9 it as soon as it has done something, and return how much that was."""
    command = [sys.executable, "-m", "hydrabench", *map(str, arguments), "--out", str(out)]
    with (out.parent / f"{out.name}.log").open("w+") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE
            while not done(out) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        assert process.returncode == -signal.SIGKILL, log.read()  # it was still at work
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    assert not (out / "summary.json").exists()
    return len(done(out))


# Killed and resumed ----------------------------------------------------------------------------


def test_training_that_was_killed_goes_on_to_the_same_checkpoint(made, tmp_path):
    arguments = ("train", "--config", made / "recipe.yml", "--set", "train.epochs=15", "--device", "cpu")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = run_here(*arguments, "--out", whole)
    assert 0 < kill_in_the_middle(arguments, cut, epochs) < 15
    assert not (cut / "checkpoint.safetensors").exists()
    assert run_here(*arguments, "--out", cut, "--resume") == summary
    assert (cut / "checkpoint.safetensors").read_bytes() == (whole / "checkpoint.safetensors").read_bytes()
    assert epochs(cut) == epochs(whole)
    assert len(epochs(cut)) == 15
    visible = {path.name for path in cut.iterdir() if not path.name.startswith(".")}
    assert visible == {path.name for path in whole.iterdir()}


EVALUATIONS: dict[str, tuple[str, Arguments, int]] = {
    "pgd": ("trained", ("attack", "--epsilon", "1/255"), 400),
    "ibp": ("large.safetensors", ("certify", "--method", "ibp", "--precision", "float64"), 500),
    "smoothing": ("trained", ("certify", "--method", "smoothing", "--sigma", 0.1, "--samples", 8000), 16),
}


@pytest.mark.parametrize("kind", EVALUATIONS)
def test_an_evaluation_that_was_killed_goes_on_to_the_same_records(made, tmp_path, kind):
    ref, options, n = EVALUATIONS[kind]
    arguments = (*options, "--ckpt", made / ref, "-n", n, "--device", "cpu")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = run_here(*arguments, "--out", whole)
    assert 0 < kill_in_the_middle(arguments, cut, records) < n
    assert run_here(*arguments, "--out", cut, "--resume") == summary
    assert records(cut) == records(whole)
    assert [record["index"] for record in records(cut)] == list(range(n))
    assert (cut / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()


# Two processes ---------------------------------------------------------------------------------


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine that talk through gloo. Raises: TimeoutExpired if they hang."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def same_run(one: Path, two: Path) -> None:
    """Two run folders hold the same but for times, and the number of processes."""
    assert records(one) == records(two)
    assert (one / "summary.json").read_bytes() == (two / "summary.json").read_bytes()
    headers = [json.loads((folder / "run.json").read_text()) for folder in (one, two)]
    assert [header.pop("world_size") for header in headers] == [1, 2]
    assert all(header.pop("started") <= header.pop("ended") for header in headers)
    assert headers[0] == headers[1]


@pytest.mark.parametrize(("mode", "n"), [("cohen", 7), ("adaptive", 70)])
def test_two_processes_certify_as_one_does_and_print_one_summary(made, tmp_path, mode, n):
    """7 images in blocks of one, 70 in blocks of 32: the last round has work for one process only."""
    arguments = ("certify", "--ckpt", made / "trained", "--method", "smoothing", "--samples", 300, "-n", n)
    arguments += ("--mode", mode)
    arguments += ("--device", "cpu", "--json", "--out")
    summary = run_here(*arguments, tmp_path / "one")
    done = torchrun("-m", "hydrabench", *arguments, "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == summary
    same_run(tmp_path / "one", tmp_path / "two")


SEVERAL = """
import sys
from hydrabench.cli import main

for arguments, code in {commands}:
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == code, (arguments, stopped.code)
main({last})
"""


def test_two_processes_attack_as_one_does_and_stop_at_once_when_they_must(made, tmp_path):
    """Three blocks shared by two, then three mistakes: of both processes, of both, and of the main one alone (only it
    looks at the folder), which ends the run."""
    given = ["attack", "--ckpt", str(made / "trained"), "--steps", "3", "--epsilon", "8/255", "--device", "cpu"]
    run_here(*given, "-n", 250, "--out", tmp_path / "one")
    commands = [
        ([*given, "-n", "250", "--out", "two"], 0),
        ([*given, "-n", "501", "--out", "three"], 1),
        ([*given, "--epsilon", "8", "--out", "three"], 1),
    ]
    (tmp_path / "several.py").write_text(SEVERAL.format(commands=commands, last=commands[0][0]))
    started = time.monotonic()
    done = torchrun("several.py", cwd=tmp_path)
    assert done.returncode == 1
    assert time.monotonic() - started < PATIENCE / 2
    same_run(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "three").exists()
    lines = done.stderr.splitlines()
    for message in (
        "error: -n 501 is outside 1..500, the test images of digits",
        "error: pgd: epsilon: epsilon '8' lies outside [0, 1], the pixel range; if you mean 8 of 255 grey levels, "
        "write 8/255",
        "error: two already holds a run; continue it with --resume or choose a new --out",
    ):
        assert message in lines
    assert "several.py" not in "".join(line for line in lines if line.lstrip().startswith("File"))  # no traceback


def test_two_runs_give_the_same_bytes_where_several_threads_are_to_be_had(tmp_path):
    """What resuming bit by bit rests on: whatever OMP_NUM_THREADS says, the command line computes on one thread."""
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "MKL_NUM_THREADS"}
    short = ("--set", "train.epochs=2", "--set", "train.epsilon_ramp_epochs=2", "--device", "cpu")
    written = []
    for name in ("first", "second"):
        command = ["train", "--config", "digits-crown-ibp", *short, "--out", str(tmp_path / name)]
        subprocess.run(
            [sys.executable, "-m", "hydrabench", *command],
            env=environment | {"OMP_NUM_THREADS": "2"},
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )
        written.append((tmp_path / name / "checkpoint.safetensors").read_bytes())
    assert written[0] == written[1]
