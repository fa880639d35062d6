"""Real processes: killed in the middle and resumed, and two of them under torchrun."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
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


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary as the command prints it, without the hash of a ledger, in which there are times, and its memory."""
    return {key: value for key, value in summary.items() if key not in ("records_sha256", "peak_memory")}


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


EVALUATIONS: dict[str, tuple[str, Arguments, int]] = {
    "pgd": ("trained", ("attack", "--epsilon", "1/255"), 400),
    "ibp": ("large.safetensors", ("certify", "--method", "ibp", "--precision", "float64"), 500),
}  # smoothing is killed below


@pytest.mark.parametrize("kind", EVALUATIONS)
def test_an_evaluation_that_was_killed_goes_on_to_the_same_records(made, tmp_path, kind):
    ref, options, n = EVALUATIONS[kind]
    arguments = (*options, "--ckpt", made / ref, "-n", n, "--device", "cpu")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = run_here(*arguments, "--out", whole)
    assert 0 < kill_in_the_middle(arguments, cut, records) < n
    assert numbers(run_here(*arguments, "--out", cut, "--resume")) == numbers(summary)
    assert records(cut) == records(whole)
    assert [record["index"] for record in records(cut)] == list(range(n))


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_ledger(made, tmp_path, kills):
    """Also before it has a folder, and between writing a file and giving it its name."""
    arguments = ("certify", "--method", "smoothing", "--sigma", 0.1, "--samples", 8000, "--ckpt", made / "trained",
                 "-n", 100, "--device", "cpu")  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = run_here(*arguments, "--out", whole)
    command = [sys.executable, "-m", "hydrabench", *map(str, arguments), "--out", str(cut), "--resume"]
    moments, done = random.Random(kills), [0]
    for _ in range(kills):
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.5, 8))
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
        done.append(len(records(cut)))
    assert done == sorted(done)
    assert numbers(run_here(*arguments, "--out", cut, "--resume")) == numbers(summary)
    assert records(cut) == records(whole)
    assert {path.name for path in cut.iterdir()} == {"run.json", "records.jsonl", "summary.json"}


# Two at once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["attack", "train"])
def test_of_two_processes_in_one_folder_one_is_refused(made, tmp_path, verb):
    """Started together: one does the work, the other says who does, or that it is done."""
    arguments = {
        "attack": ("attack", "--ckpt", made / "trained", "--epsilon", "1/255", "-n", 300),
        "train": ("train", "--config", made / "recipe.yml"),
    }[verb]
    alone = run_here(*arguments, "--device", "cpu", "--out", tmp_path / "alone")
    command = [sys.executable, "-m", "hydrabench", *map(str, arguments), "--device", "cpu", "--out", "together"]
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE)[1] for process in running]
    codes = [process.returncode for process in running]
    assert sorted(codes) == [0, 1], said
    refusal, winner = said[codes.index(1)].splitlines()[-1], running[codes.index(0)]
    assert f"together is being written by process {winner.pid} on " in refusal or "already holds a run" in refusal
    assert numbers(json.loads((tmp_path / "together" / "summary.json").read_text())) == numbers(alone)
    assert records(tmp_path / "together") == records(tmp_path / "alone")


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
    assert numbers(json.loads((one / "summary.json").read_text())) == numbers(
        json.loads((two / "summary.json").read_text())
    )
    headers = [json.loads((folder / "run.json").read_text()) for folder in (one, two)]
    assert [header.pop("world_size") for header in headers] == [1, 2]
    assert all(header.pop("started") <= header.pop("ended") for header in headers)
    assert all(header.pop("peak_memory") > 0 for header in headers)
    assert headers[0] == headers[1]


SEVERAL = """
from hydrabench.cli import common, main
from hydrabench.process import leave

common.GRACE_SECONDS = 0

for arguments, code in {commands}:
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == code, (arguments, stopped.code)
try:
    main({last})
except SystemExit as stopped:
    leave(stopped.code)
"""
NOISES = {"cohen": 7, "adaptive": 70}  # in blocks of 1 and of 32: the last round has work for one process only


@pytest.fixture(scope="module")
def both(made, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """The same commands by one process and by two: the folder of `one` and `two`, what the two printed, the summaries.

    After them three mistakes: of both processes, of both, and of the main one alone (only it looks at the folder),
    which ends the run. All in one start, because starting takes longer than the work.
    """
    root = tmp_path_factory.mktemp("both")
    trained = ["--ckpt", str(made / "trained"), "--device", "cpu", "--json"]
    attack = ["attack", *trained, "--steps", "3", "--epsilon", "8/255"]
    commands = {
        mode: ["certify", *trained, "--method", "smoothing", "--samples", "300", "--mode", mode, "-n", str(n)]
        for mode, n in NOISES.items()
    } | {"attack": [*attack, "-n", "250"]}
    summaries = [run_here(*arguments, "--out", root / "one" / name) for name, arguments in commands.items()]
    several = [([*arguments, "--out", str(Path("two") / name)], 0) for name, arguments in commands.items()]
    several += [([*attack, "-n", "501", "--out", "three"], 1), ([*attack, "--epsilon", "8", "--out", "three"], 1)]
    (root / "several.py").write_text(SEVERAL.format(commands=several, last=several[0][0]))
    started = time.monotonic()
    done = torchrun("several.py", cwd=root)
    assert time.monotonic() - started < PATIENCE / 2
    return root, done, summaries


@pytest.mark.parametrize("name", [*NOISES, "attack"])
def test_two_processes_evaluate_as_one_does(both, name):
    root, done, _ = both
    assert "error: two/cohen already holds a run" in done.stderr, done.stderr  # they came to the last command
    same_run(root / "one" / name, root / "two" / name)


def test_two_processes_print_one_summary_of_each_run(both):
    _, done, summaries = both
    decoder, text = json.JSONDecoder(), done.stdout.strip()
    for summary in summaries:
        printed, end = decoder.raw_decode(text)
        assert numbers(printed) == numbers(summary)
        text = text[end:].strip()
    assert not text


def test_two_processes_stop_at_once_when_they_must(both):
    root, done, _ = both
    assert done.returncode == 1
    assert not (root / "three").exists()
    lines = done.stderr.splitlines()
    for message in (
        "error: -n 501 is outside 1..500, the test images of digits",
        "error: pgd: epsilon: '8' lies outside [0, 1], the pixel range; if you mean 8 of 255 grey levels, write 8/255",
        "error: two/cohen already holds a run; continue it with --resume or choose a new --out",
    ):
        assert lines.count(message) == 1
    assert "several.py" not in "".join(line for line in lines if line.lstrip().startswith("File"))  # no traceback


def test_two_runs_give_the_same_bytes_where_several_threads_are_to_be_had(tmp_path):
    """What resuming bit by bit rests on: whatever OMP_NUM_THREADS says, the command line computes on one thread."""
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "MKL_NUM_THREADS"}
    short = ("--set", "train.epochs=2", "--set", "train.epsilon_ramp_epochs=2", "--device", "cpu")
    commands = [
        [sys.executable, "-m", "hydrabench", "train", "--config", "digits-crown-ibp", *short, "--out", tmp_path / name]
        for name in ("first", "second")
    ]
    running = [
        subprocess.Popen(command, env=environment | {"OMP_NUM_THREADS": "2"}, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    assert [process.wait(PATIENCE) for process in running] == [0, 0]
    first, second = (tmp_path / name / "checkpoint.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
