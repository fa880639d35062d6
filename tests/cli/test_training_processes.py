"""Training in real processes: killed at any moment and resumed, and two of them under torchrun."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import hydrabench
from hydrabench.cli import main

ROOT = Path(hydrabench.__file__).parents[1]
PATIENCE = 240  # seconds until a process that should have done its work counts as hanging
# As many threads in the processes as here: sums of floats come out the same, bit for bit.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
ENVIRONMENT |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


def run_here(*arguments: object) -> dict[str, Any]:
    """Run one command in this process and return its summary."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def table(folder: Path) -> list[dict[str, str]]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_training_that_is_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path, write_recipe):
    """Kill -9 some random time after a state was written, twice or until one was within an epoch.

    A state is saved after every minibatch.
    """
    recipe = write_recipe(
        tmp_path / "recipe.yml",
        model={"arch": "cifar_model_bn"},
        objective={"name": "trades", "epsilon": "8/255", "steps": 2},
        train={"epochs": 8, "batch_size": 128, "lr": 0.05, "ema_decay": 0.99, "warmup_epochs": 2},
    )
    arguments = ("train", "--config", recipe, "--device", "cpu")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = run_here(*arguments, "--out", whole)
    command = [sys.executable, "-m", "hydrabench", *map(str, arguments), "--save-minutes", "0", "--out", str(cut)]
    moments, found = random.Random(0), []
    while len(found) < 2 or not any(minibatches for _, minibatches in found):
        before = (cut / "resume.pt").stat().st_mtime_ns if (cut / "resume.pt").exists() else 0
        process = subprocess.Popen([*command, "--resume"], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            if (cut / "resume.pt").exists() and (cut / "resume.pt").stat().st_mtime_ns > before:
                break
            time.sleep(0.002)
        time.sleep(moments.random() * 0.3)
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it was still at work
        done = torch.load(cut / "resume.pt", weights_only=True)["done"]
        found.append((done["epochs"], done["sums"]["minibatches"]))
    assert found == sorted(set(found))
    assert not (cut / "checkpoint.safetensors").exists()
    assert run_here(*arguments, "--out", cut, "--resume") == summary
    assert (cut / "checkpoint.safetensors").read_bytes() == (whole / "checkpoint.safetensors").read_bytes()
    assert table(cut) == table(whole)
    visible = {path.name for path in cut.iterdir() if not path.name.startswith(".")}
    assert visible == {path.name for path in whole.iterdir()}


# Two processes ---------------------------------------------------------------------------------

SEVERAL = """
from hydrabench.cli import common, main
from hydrabench.process import leave

common.GRACE_SECONDS = 0

for arguments, code in {commands}:
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == code, (arguments, stopped.code)
    else:
        raise AssertionError(arguments)
leave(0)
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory, write_recipe) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same commands by one process and by two: their folders `one` and `two`, and what the two printed."""
    root = tmp_path_factory.mktemp("both")
    phase = {"batch_size": 256, "optimizer": "sgd", "lr": 0.05}
    recipe = write_recipe(
        root / "recipe.yml",
        objective={"name": "trades", "epsilon": "4/255", "steps": 1},
        train={**phase, "epochs": 2, "ema_decay": 0.5},
        prune={**phase, "epochs": 1, "objective": {"name": "crown-ibp", "epsilon": "1/255"}},
        finetune={**phase, "epochs": 1, "objective": {"name": "natural"}},
        pipeline={"densities": [0.5], "lwm": False},
        evaluate=[{"kind": "clean"}],
    )
    free = write_recipe(
        root / "free.yml",
        objective={"name": "free", "epsilon": "4/255", "repeats": 2},
        train={**phase, "epochs": 2, "schedule": "constant"},
    )
    norm = write_recipe(root / "norm.yml", model={"arch": "cifar_model_bn"}, train={**phase, "epochs": 1})
    options = ["--device", "cpu", "--json"]
    commands = [
        (["pipeline", "--config", str(recipe), *options, "--out"], "pipeline", 0),
        (["train", "--config", str(free), *options, "--out"], "free", 0),
        (["train", "--config", str(norm), "--micro-batch", "50", *options, "--out"], "norm", 0),
    ]
    refused = [
        (["train", "--config", str(norm), "--set", "train.sync_batch_norm=true", "--device", "cpu", "--out", "x"], 1),
        (["train", "--config", str(norm), "--set", "train.lr=1e9", "--device", "cpu", "--out", "diverged"], 1),
    ]
    for arguments, out, _ in commands:
        run_here(*arguments[:-2], "--out", root / "one" / out)
    again = [([*arguments, str(Path("two") / out)], code) for arguments, out, code in commands] + refused
    (root / "several.py").write_text(SEVERAL.format(commands=again))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "several.py"],
        cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root, done


@pytest.mark.parametrize("run", ["pipeline/train", "pipeline/prune-0.5", "pipeline/finetune-0.5", "free"])
def test_two_processes_train_as_one_does(both, run):
    """Without batch norm: the loss curves, validation verdicts and weights agree within float tolerance.

    1038 images are four batches of 256 and one of 14, whose rows other processes train on: what free training
    remembers of them moves from one to the other.
    """
    root, _ = both
    one, two = (root / name / run for name in ("one", "two"))
    for first, second in zip(table(one), table(two), strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            images = 259 if key.startswith("validation") else 1038
            tolerance = 1.5 / images if key.endswith("accuracy") else 1e-4 * abs(float(value))
            assert float(second[key]) == pytest.approx(float(value), abs=tolerance), key
    tensors = [load_file(folder / "checkpoint.safetensors") for folder in (one, two)]
    assert tensors[0].keys() == tensors[1].keys()
    for key, tensor in tensors[0].items():
        close = torch.isclose(tensor, tensors[1][key], rtol=1e-2, atol=2e-4)
        assert close.float().mean() > 0.995, key  # a score on the edge of its mask may fall on the other side
    assert json.loads((two / "run.json").read_text())["world_size"] == 2


def test_two_processes_end_with_the_same_batch_norm_and_no_writer_but_the_main_one(both):
    """Parts of at most 50 of 256 images: three for each of two processes, six for one; statistics differ a little."""
    root, _ = both
    one, two = (load_file(root / name / "norm" / "checkpoint.safetensors") for name in ("one", "two"))
    assert {path.name for path in (root / "two" / "norm").iterdir()} == {
        "run.json", "summary.json", "metrics.csv", "checkpoint.safetensors",
    }  # fmt: skip
    for key in ("1.running_mean", "1.running_var"):
        assert 0 < (one[key] - two[key]).abs().max() < 0.5
    assert all(torch.isfinite(tensor).all() for tensor in two.values())


def test_one_of_two_processes_talks(both):
    root, done = both
    assert done.stdout.count('"rows"') <= 1
    decoder, text, values = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:].strip()
    assert len(values) == 3  # the leaderboard of the pipeline, and the summaries of the other runs
    assert values[2] == json.loads((root / "two" / "norm" / "summary.json").read_text())
    assert done.stderr.count("[1/3] train") == 1
    assert done.stderr.count("held-out images; history in") == 5
    refusal = "error: train.sync_batch_norm: it needs GPUs; set it to false"
    assert done.stderr.splitlines().count(refusal) == 1
    assert "Warning" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "error: train tiny: the loss is" in line]) == 1
    assert not (root / "x").exists()
