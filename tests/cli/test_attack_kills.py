"""AutoAttack killed in each of its attacks, shared by processes, and on more images: the same verdicts every time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

import hydrabench
from hydrabench.evaluators.autoattack_settings import ATTACKS

ROOT = Path(hydrabench.__file__).parents[1]
PATIENCE = 300  # seconds
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
# Images 25, 45 and 52 are close: with other starts, or another rounding, other attacks break them or none does.
ATTACK = ("attack", "--ckpt", "digits-crown-ibp-99", "--attack", "autoattack", "--epsilon", "80/255", "--device", "cpu")
IMAGES = 60


def command(out, n=IMAGES, start=("-m", "hydrabench")):
    return [sys.executable, *start, *ATTACK, "-n", str(n), "--out", str(out), "--resume"]


def run(*arguments, **names):
    done = subprocess.run(
        command(*arguments, **names), env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr


def lines(path):
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def verdicts(out):
    """Every field of the records but their times: margins to the last bit."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(out / "records.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("aa") / "whole"
    run(out)
    return out


def kill_during(attack, before, out):
    """Start or continue the run, and kill it while `attack` is at work. Returns: the seconds that are lost."""
    with (out.parent / f"{attack}.log").open("w+") as log:
        process = subprocess.Popen(command(out), env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < deadline:
                if any(line["attack"] == before for line in lines(out / "attacks.jsonl")):
                    since = time.monotonic()
                    time.sleep(0.15)
                    break
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        assert process.returncode == -signal.SIGKILL, log.read()
    assert not any(line["attack"] == attack for line in lines(out / "attacks.jsonl"))
    return time.monotonic() - since


@pytest.mark.slow
def test_a_run_killed_in_each_of_its_attacks_gives_the_same_records(whole, tmp_path):
    out = tmp_path / "killed"
    order = ("clean", *ATTACKS["standard"])
    for before, attack in pairwise(order):
        kept = (out / "attacks.jsonl").read_bytes() if (out / "attacks.jsonl").exists() else b""
        lost = kill_during(attack, before, out)
        print(f"killed during {attack}: {lost:.2f} s of work lost")
        assert (out / "attacks.jsonl").read_bytes().startswith(kept)
    run(out)
    assert verdicts(out) == verdicts(whole)
    tried = [(line["image"], line["attack"]) for line in lines(out / "attacks.jsonl")]
    assert len(tried) == len(set(tried))  # nothing ran twice


@pytest.mark.slow
def test_more_images_and_more_processes_give_the_same_records(whole, tmp_path):
    late = [line["index"] for line in verdicts(whole) if line["broken_by"] not in ("clean", "apgd-ce")]
    assert 25 in late
    run(tmp_path / "more", n=100)
    assert verdicts(tmp_path / "more")[:IMAGES] == verdicts(whole)
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hydrabench")
    run(tmp_path / "two", start=two)
    assert verdicts(tmp_path / "two") == verdicts(whole)
