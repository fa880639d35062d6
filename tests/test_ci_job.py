"""The GitHub Actions job of docs/ci.md, its very lines, on a network that regressed and on one changed harmlessly."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

import hydrabench
from hydrabench.cli import main
from hydrabench.data import load_images

ROOT = Path(hydrabench.__file__).parents[1]
PAGE = (ROOT / "docs" / "ci.md").read_text()
(JOB,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
(BASELINE,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""
REWRITTEN = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, images):
        return self.out(torch.relu(self.hidden(images.flatten(1))))

build = Network
"""


def trained():
    """A small network that knows the digits: full-batch Adam for a moment."""
    images, torch_state = load_images("digits", "train"), torch.random.get_rng_state()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    x, y = images.images.float() / 255, images.labels
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    torch.random.set_rng_state(torch_state)
    return network


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A repository with the network, its images, and the baseline that docs/ci.md makes."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "network.py").write_text(NETWORK)
    torch.save(trained().state_dict(), folder / "network.pt")
    images = load_images("digits", "test")
    np.savez(folder / "images.npz", images=images.images[:60].numpy(), labels=images.labels[:60].numpy())
    (folder / "requirements.txt").write_text("hydrabench\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in BASELINE.strip().splitlines():
            done = CliRunner().invoke(main, shlex.split(line)[1:])
            assert done.exit_code == 0, done.output
    finally:
        os.chdir(before)
    (folder / "runs").rename(folder / "not committed")
    return folder


@pytest.fixture
def job(project, tmp_path):
    """Run the steps of the job in the project, each as GitHub does, until one fails; `pip` has installed everything."""
    shims = {"hydrabench": f'exec {sys.executable} -m hydrabench "$@"', "pip": "exit 0"}
    (tmp_path / "bin").mkdir()
    for name, text in shims.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    summary = tmp_path / "summary.md"
    paths = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), "GITHUB_STEP_SUMMARY": str(summary)}

    def run():
        runs = project / "runs"
        if runs.exists():
            runs.rename(tmp_path / "earlier runs")
        for step in yaml.safe_load(JOB)["jobs"]["gate"]["steps"]:
            if "run" in step:
                command = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
                done = subprocess.run(
                    command, cwd=project, env=environment, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    break
        return done, summary.read_text() if summary.exists() else ""

    return run


def test_the_job_takes_ten_lines():
    assert len(JOB.strip().splitlines()) <= 11


def test_a_network_that_was_rewritten_passes(project, job):
    """The same function in other code, with its hidden neurons in another order: sums differ in their last digits."""
    state = torch.load(project / "network.pt", weights_only=True)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    renamed = {"hidden.weight": state["1.weight"][order], "hidden.bias": state["1.bias"][order],
               "out.weight": state["3.weight"][:, order], "out.bias": state["3.bias"]}  # fmt: skip
    (project / "network.py").write_text(REWRITTEN)
    torch.save(renamed, project / "network.pt")
    done, summary = job()
    (project / "network.py").write_text(NETWORK)
    torch.save(state, project / "network.pt")
    assert (done.returncode, done.stderr) == (0, "")
    assert "compared, no regression" in done.stdout
    assert summary.startswith("## Robustness gate: passed")


def test_a_network_that_regressed_fails_and_the_summary_names_the_images(project, job):
    """Noise on the weights costs robustness first."""
    state = torch.load(project / "network.pt", weights_only=True)
    noise = torch.Generator().manual_seed(0)
    torch.save(
        {key: w + 0.05 * torch.randn(w.shape, generator=noise) for key, w in state.items()}, project / "network.pt"
    )
    done, summary = job()
    torch.save(state, project / "network.pt")
    assert done.returncode == 1
    assert "regressed; the baseline is robustness" in done.stderr
    assert re.search(r"image \d+ lost: (prediction .*)?(verified|robust) yes → no", done.stdout)
    assert re.search(r"\| \d+ \| lost \| .*yes → no", summary)
