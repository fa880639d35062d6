"""The scripts under examples/ and the Python lines of docs/own-network.md, run on few images."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import hydrabench as hb
from hydrabench.bounds.lirpa.library import auto_lirpa
from hydrabench.bounds.lirpa.shims import shims

ROOT = Path(hb.__file__).parents[1]


def example(name: str):
    return runpy.run_path(str(ROOT / "examples" / name))["main"]


@pytest.mark.parametrize("data", [None, "elsewhere"])
def test_the_demo_judges_the_images_that_come_with_hydrabench_whatever_data_are_here(data, tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRABENCH_DATA", raising=False)
    if data is not None:
        (tmp_path / data).mkdir()
        monkeypatch.setenv("HYDRABENCH_DATA", str(tmp_path / data))
    demo = runpy.run_path(str(ROOT / "examples" / "demo.py"))
    counts = [len(demo["subject_of"](ref).test_images(demo["OPTIONS"])) for ref in demo["EVALUATIONS"]]
    assert counts == [500, 500, 500, 500, 200, 200]


def test_an_own_network_goes_from_training_to_a_table(capsys):
    example("own_network.py")(20)
    out = capsys.readouterr().out
    assert re.search(r"^clean +0\.\d+$", out, re.M)
    assert re.search(r"^CROWN L∞ 8/255 low +0\.\d+$", out, re.M)
    assert re.search(r"^smoothing σ=0\.12 r=0\.1 high +0\.\d+$", out, re.M)


def test_a_training_loop_certifies_every_epoch(capsys):
    example("training_loop.py")(2)
    out = capsys.readouterr().out
    verified = [float(text) for text in re.findall(r"^epoch \d: .* verified (\d+\.\d)%$", out, re.M)]
    assert len(verified) == 2
    assert max(verified) > 30
    assert "cascade@1 of best epoch at L∞ 4/255, 500 images of digits, in memory" in out


def test_the_table_of_a_paper_goes_on_with_more_images(capsys, tmp_path):
    for n in (10, 20):
        example("paper_table.py")(tmp_path, n)
        rows = capsys.readouterr().out.splitlines()
        assert [row.split(" & ")[0] for row in rows[:3]] == ["dense", r"95 \% pruned", r"99 \% pruned"]
        assert all(row.count(r"\tiny[") == 3 for row in rows[:3])
        assert f"of {n} images" in rows[3]
    assert (tmp_path / "report" / "leaderboard.md").is_file()


def test_the_lines_of_the_page_on_your_own_network_run(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "own-network.md").read_text()
    (code,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.S) if "undecided" in one)
    assert len([line for line in code.splitlines() if line]) == 11
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code, found)
    assert len(found["records"]) == 100
    assert len(found["undecided"]) < 100
    assert found["table"].shape[0] == 1
    assert set(found["checked"]["differences"]) == {""}
    assert hb.Run("runs/99").summary == found["sparser"].summary


def test_auto_lirpa_takes_what_load_returns():
    """Its interval bounds of the network agree with ours."""
    try:
        library = auto_lirpa()
    except hb.HydrabenchError as error:
        pytest.skip(str(error))
    network, x = hb.load("digits-crown-ibp"), torch.rand(3, 1, 8, 8)
    epsilon = 2 / 255
    low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    ball = library.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high)
    with shims(library):  # what release 0.3 misses in newer torch
        bounded = library.BoundedModule(network, x)
        lower, upper = bounded.compute_bounds(x=(library.BoundedTensor(x, ball),), method="IBP")
    ours = hb.bounds.interval_bounds(network, low, high)
    torch.testing.assert_close((lower, upper), tuple(ours), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(lower).all()
