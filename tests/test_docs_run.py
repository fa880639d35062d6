"""Every command and every Python block of README and docs/ is run, page by page, each page in an empty folder.

Quickly: on four images, and training for an epoch on a tenth of the digits. `-m slow` runs the same lines as they are
written, and those that take minutes. What needs data, a download or a placeholder filled in is in `NOT_RUN`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
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
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|^((?: {4}.*\n)+)", re.S | re.M)
COMMAND = re.compile(r"^\s*(?:\$ |- run: |srun )?(?:torchrun .*?-m )?(hydrabench (?!\().*)$", re.M)
INLINE = re.compile(r"`(?:torchrun [^`]*?-m )?(hydrabench [a-z][^`]*)`")
FEW = 4  # images
LESS = ["epochs=1", "epsilon_ramp_epochs=1"]

NOT_RUN = {
    "attack  --model torchvision:resnet50": "ImageNet and trained weights",
    "attack  --model robustbench:": "a download by RobustBench, and CIFAR-10",
    "certify --model package.module:Net": "a package and a folder of somebody's own; tests/cli/test_any_network.py",
    "finetune --config mine.yml --model torchvision:resnet18": "CIFAR-10; tests/cli/test_own_networks.py",
    "train  --config leaves.yml": "images of somebody's own; tests/cli/test_own_images.py",
    "prune  --config leaves.yml": "images of somebody's own; tests/cli/test_own_images.py",
    "attack --ckpt runs/sparse --dataset folder:images/val": "images of somebody's own; tests/cli/test_own_images.py",
    "pipeline --config leaves.yml": "images of somebody's own; tests/cli/test_own_images.py",
    "attack --ckpt model_best.pth.tar": "a file of HYDRA's authors, and SVHN; tests/workflows/test_foreign.py",
    "certify --ckpt w.pt --arch vgg16_bn": "CIFAR-10; tests/workflows/test_foreign.py",
    "pipeline --config hydra-cifar10-trades-wrn_28_4 --precision": "GPUs and CIFAR-10",
    "train --config RECIPE": "a recipe of somebody's own; tests/plugins",
    "pipeline --config examples/extend/mart.yml": "FashionMNIST; tests/plugins",
    "attack --plugin examples/extend/corruption_accuracy.py": "a plugin would stay for other tests; tests/plugins",
    "report --import cohen": "logs of other tools; tests/reporting/test_cohen_import.py",
    "pipeline --config NAME": "the name of a recipe",
    "certify --ckpt ID": "the name of a checkpoint",
    "verify RUN": "the name of a run",
    "vnncomp vnncomp2021/": "files of the competition; tests/workflows/test_vnncomp.py",
    "certify --method smoothing --dataset digits --model hydrabench.checkpoints.composed:denoised": "a denoiser of "
    "somebody's own; tests/checkpoints/test_composed.py",
    "zoo fetch hydra/": "a download; tests/checkpoints/test_download.py",
    "train --config hydra-cifar10-crown-ibp-cifar_model": "CIFAR-10",
    "train --config cifar10-cat-rs-resnet110": "CIFAR-10, and days of a GPU; tests/objectives/test_smoothing.py",
}
SLOW = (
    "pipeline --config digits",
    "pipeline --config hydra-cifar10-trades-wrn_28_4 --dry-run",
    "zoo verify",
    "attack --ckpt digits-trades-95 --attack autoattack",
    "certify --ckpt digits-trades-95 --method smoothing",
    "report runs --out reports/tour",
)
# The digits stand for data that are not here; four images say as much as a hundred about whether a line works.
ON_DIGITS = {"--dataset cifar10": "--dataset digits", "npz:mine.npz": "npz:images.npz"}


class Net(nn.Module):
    """What `mynet.py` and `network.py` build."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


CODE = """
import torch
from torch import nn

from hydrabench.data import load_images


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Linear(128, 10)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


def build():
    return Net()


digits = load_images("digits", "train")
images, labels = digits.images[:200] / 255, digits.labels[:200]
"""


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network of somebody's own after a few seconds of ordinary training."""
    torch.manual_seed(0)
    network, digits = Net(), load_images("digits", "train")
    x, y = digits.images / 255, digits.labels
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(5):
        for rows in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval()


def own_files(folder: Path, network: nn.Module) -> None:
    """The files that the pages take for granted: code, weights, images, an ONNX file."""
    for name in ("mynet", "network"):
        (folder / f"{name}.py").write_text(CODE)
        torch.save(network.state_dict(), folder / f"{name}.pt")
    digits = load_images("digits", "test")
    np.savez(folder / "images.npz", images=digits.images[:40].numpy(), labels=digits.labels[:40].numpy())
    images, sizes = torch.zeros(2, 1, 8, 8), ({0: torch.export.Dim("batch")},)
    torch.onnx.export(network, (images,), folder / "net.onnx", dynamo=True, dynamic_shapes=sizes, verbose=False)


def earlier_runs(folder: Path, page: str, run: Callable[[str], None]) -> None:
    """Runs and checkpoints that a page speaks of and another one makes."""
    if page == "docs/clusters.md":
        shutil.copytree(ROOT / "zoo" / "digits-trades-95", folder / "runs/digits/train")
        file = next((folder / "runs/digits/train").glob("*.safetensors"))
        file.rename(file.with_name("checkpoint.safetensors"))
    if page == "docs/report.md":
        for number in ("95", "99"):
            run(f"attack --ckpt digits-trades-{number} --out runs/evaluations/digits-trades-{number}/pgd-50-v2-16_255")


def pieces(page: str) -> list[tuple[str, str]]:
    """Commands without "hydrabench", and blocks of Python and YAML, in the order of a page: kind and text."""
    found: list[tuple[str, str]] = []
    text = (ROOT / page).read_text()
    for language, fenced, indented in BLOCK.findall(text):
        if language in ("python", "yaml") and "- run: " not in fenced:
            found.append((language, fenced))
        else:
            found += [("command", line.removeprefix("hydrabench ")) for line in COMMAND.findall(fenced or indented)]
    inline = (line.removeprefix("hydrabench ") for line in INLINE.findall(re.sub(BLOCK, "", text)))
    whole = [line for line in inline if len(line.split()) > 1 and not re.search(r"\||\.\.\.|\n", line)]
    return list(dict.fromkeys([*found, *(("command", line) for line in whole)]))


def among(line: str, starts: object) -> bool:
    return any(line.startswith(start) for start in starts)  # type: ignore[attr-defined]


def shortened(line: str) -> list[str]:
    """The words of a command, to be done on a few images, or for an epoch."""
    words = shlex.split(os.path.expandvars(line), comments=True)
    if words[0] in ("attack", "certify") and "--index" not in words:
        words += ["-n", str(FEW)]
    if words[0] in ("train", "prune", "finetune"):
        keys = [*(f"{words[0]}.{one}" for one in LESS), "data.fraction=0.1"]
        words += [word for key in keys for word in ("--set", key)]
    return words


@pytest.mark.parametrize("fully", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quickly", "as written"])
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_python_block_of_a_page_runs(page, fully, trained, tmp_path, monkeypatch):
    wanted = [piece for piece in pieces(page) if not among(piece[1], NOT_RUN) and (fully or not among(piece[1], SLOW))]
    if not any(kind != "yaml" for kind, _ in wanted):
        pytest.skip("nothing to run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    def run(line: str) -> None:
        for there, here in ON_DIGITS.items():
            line = line.replace(there, here)
        words = shlex.split(os.path.expandvars(line), comments=True) if fully else shortened(line)
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, f"hydrabench {line}\n{result.output}\n{result.exception!r}"

    if any(kind == "python" or among(text, ("certify --model", "attack  --model")) for kind, text in wanted):
        own_files(tmp_path, trained)
    earlier_runs(tmp_path, page, run)
    for kind, text in wanted:
        if kind == "python":
            exec(compile(text, page, "exec"), {"__name__": page})
            for module in ("mynet", "network"):  # of this folder alone
                sys.modules.pop(module, None)
        elif kind == "yaml":
            values = yaml.safe_load(text)
            if isinstance(values, dict) and "objective" in values:  # a recipe
                values["data"] = {"name": "digits"}
                (tmp_path / f"{values['name']}.yml").write_text(yaml.safe_dump(values))
        else:
            run(text)


def test_what_is_not_run_or_slow_is_named_and_there():
    """A line that was taken out of the pages is taken out of the tables, too."""
    lines = [text for page in PAGES for kind, text in pieces(page) if kind == "command"]
    assert len(lines) > 50
    for start in (*NOT_RUN, *SLOW):
        assert any(line.startswith(start) for line in lines), start
