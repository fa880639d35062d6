"""Every verb that writes, in real processes: killed at random moments and run again, and two at once in one folder."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import hydrabench
from hydrabench.__main__ import run

ROOT = Path(hydrabench.__file__).parents[1]
PATIENCE = 120  # seconds until a process that should have done its work counts as hanging
KILLS = 20
OFTEN = ("finetune", "report")  # the verbs of which three kills are not slow
IMPORTED = ("evaluation", "pipeline", "reporting", "training", "verifying", "zoo")
STATES = {"resume.pt"}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
TIMES = {"seconds", "started", "ended", "records_sha256", "environments", "peak_memory"}  # and what follows from times
REFUSED = re.compile(
    r"error: (together|bounds) (is being written by (process \d+ on \S+, started|another process)|already holds|exists)"
)


@pytest.fixture(scope="module")
def verbs(tmp_path_factory, write_recipe, write_checkpoint) -> dict[str, tuple[object, ...]]:
    """Commands that take some tenths of a second after the imports, each to be followed by what it writes."""
    folder = tmp_path_factory.mktemp("given")
    phase = {"epochs": 2, "batch_size": 256, "lr": 0.01}
    recipe = write_recipe(
        folder / "recipe.yml", objective={"name": "trades", "epsilon": "4/255", "steps": 1},
        train=phase, prune=phase, finetune=phase, evaluate_images=40,
        evaluate=[{"kind": "clean"}, {"kind": "ibp", "epsilon": "1/255"}],
    )  # fmt: skip
    dense = write_checkpoint(folder / "dense.safetensors")
    sparse = write_checkpoint(folder / "sparse.safetensors", density=0.1)
    cpu = ("--device", "cpu")
    ledger = ("attack", "--ckpt", dense, "--epsilon", "2/255", "-n", 400, *cpu, "--out")
    assert start((*ledger, folder / "ledger")).wait(PATIENCE) == 0
    saving = ("--config", recipe, *cpu, "--save-minutes", 0)
    again = ("--resume", "--out")
    bound = ("certify", "--ckpt", dense, *cpu)
    return {
        "attack": (*ledger[:-1], *again),
        "certify": (*bound, "-n", 300, "--method", "crown-ibp", *again),
        "smoothing": (*bound, "-n", 40, "--method", "smoothing", "--samples", 2000, *again),
        "train": ("train", *saving, *again),
        "prune": ("prune", *saving, "--ckpt", dense, "--density", 0.5, *again),
        "finetune": ("finetune", *saving, "--ckpt", sparse, *again),
        "pipeline": ("pipeline", *saving, *again),
        "report": ("report", folder / "ledger", "--out"),
        "export": ("zoo", "export", dense, "--format", "state-dict", "--out"),
        "vnnlib": (*bound, "-n", 100, "--method", "ibp", "--resume", "--out", "bounds", "--export-vnnlib"),
        "verify": ("verify", folder / "ledger", "--sample", 100, "--ckpt", dense, *cpu),
    }


VERBS = ["attack", "certify", "smoothing", "train", "prune", "finetune", "pipeline", "report", "export"]
VERBS += ["vnnlib"] if find_spec("onnx") else []


def start(arguments: tuple[object, ...], **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hydrabench", *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **options
    )


def contents(path: Path) -> dict[str, object]:
    """What is visible in a folder, or in a file, but for times: name -> bytes, or values."""
    files = [path] if path.is_file() else [file for file in path.rglob("[!.]*") if file.is_file()]
    return {str(file.relative_to(path)): _untimed(file) for file in files}


def _untimed(file: Path) -> object:
    def without(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in TIMES}

    if file.suffix == ".jsonl":
        return [without(json.loads(line)) for line in file.read_text().splitlines()]
    if file.suffix == ".csv":
        return [without(row) for row in csv.DictReader(file.read_text().splitlines())]
    if file.name in ("run.json", "summary.json"):
        return json.loads(file.read_text(), object_hook=without)
    return file.read_bytes()


@pytest.fixture
def forks(monkeypatch, tmp_path):
    """arguments, seconds -> exit status of a process that has imported everything, killed -9 after so many seconds."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hydrabench.__main__", *(f"hydrabench.workflows.{name}" for name in IMPORTED)])

    def fork(arguments: tuple[object, ...], seconds: float) -> int:
        monkeypatch.setattr(sys, "argv", ["hydrabench", *map(str, arguments)])
        process = context.Process(target=run)
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), arguments
        return process.exitcode

    return fork


def some(verbs: list[str], often: tuple[str, ...]) -> list[Any]:
    return [verb if verb in often else pytest.param(verb, marks=pytest.mark.slow) for verb in verbs]


def remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def going_on(verb: str, arguments: tuple[object, ...], out: Path) -> tuple[object, ...]:
    """The command after a kill. A whole export is not made again: its message says to leave the option out."""
    if verb == "vnnlib" and (out / "instances.csv").exists():
        return arguments[:-1]
    return (*arguments, out)


@pytest.mark.parametrize("kills", [3, pytest.param(KILLS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", some(VERBS, OFTEN))
def test_a_verb_that_is_killed_at_any_moment_can_be_gone_on_with(verbs, forks, tmp_path, verb, kills):
    """Whatever was killed, no file is half written, and the last run ends with the files of an undisturbed one."""
    whole, cut, bounds = tmp_path / "whole", tmp_path / "cut", tmp_path / "bounds"
    arguments = verbs[verb]
    for _ in range(2):  # the first starts the server, and tells no time
        remove(whole, bounds)
        began = time.monotonic()
        assert forks((*arguments, whole), PATIENCE) == 0
        took = time.monotonic() - began
    expected = contents(whole), contents(bounds)
    remove(bounds)
    moments, killed, finished = random.Random(verb), 0, 0
    while killed < kills:
        if forks(going_on(verb, arguments, cut), moments.random() * took) == 0:
            assert (contents(cut), contents(bounds)) == expected
            remove(cut, bounds)  # done sooner than killed: from the start
            finished += 1
            assert finished < 10 * kills
        else:
            killed += 1
            assert {Path(name).name for name in contents(cut)} <= {Path(name).name for name in expected[0]} | STATES
    assert forks(going_on(verb, arguments, cut), PATIENCE) == 0
    assert (contents(cut), contents(bounds)) == expected


@pytest.mark.slow
def test_verify_that_is_killed_leaves_the_ledger_as_it_was(verbs, forks):
    ledger = Path(str(verbs["verify"][1]))
    before = {path: path.read_bytes() for path in ledger.iterdir()}
    began = time.monotonic()
    assert forks(verbs["verify"], PATIENCE) == 0
    took, moments = time.monotonic() - began, random.Random(0)
    for _ in range(KILLS):
        forks(verbs["verify"], moments.random() * took)
        assert {path: path.read_bytes() for path in ledger.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("verb", [*VERBS, "verify"])
def test_of_two_at_once_one_works_or_both_end_alike(verbs, forks, tmp_path, verb):
    """Without --resume. The other says who is at work, or that it is done; a report may be written twice, alike."""
    arguments = tuple(word for word in verbs[verb] if word != "--resume")
    name = ("together",) if verb != "verify" else ()
    assert forks((*arguments, *(("alone",) if name else ())), PATIENCE) == 0
    expected = contents(tmp_path / "alone"), contents(tmp_path / "bounds")
    remove(tmp_path / "bounds")
    running = [start((*arguments, *name), cwd=tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE)[1].splitlines() for process in running]
    codes = [process.returncode for process in running]
    assert 0 in codes, said
    assert set(codes) == {0} or verb != "verify", said
    if 1 in codes:
        assert REFUSED.match(said[codes.index(1)][-1]), said
    else:
        assert verb in ("report", "export", "verify")
    assert (contents(tmp_path / "together"), contents(tmp_path / "bounds")) == expected
    assert not list(tmp_path.rglob(".*"))
