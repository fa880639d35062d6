"""The replay of public logs: what it reads, draws again and compares."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import replay
from hydrabench.smoothing import Plan, certified_radius

HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime"


def logged(folder, lines, head=HEAD, name="noise_0.25.tsv"):
    (folder / "cifar10").mkdir(parents=True)
    path = folder / "cifar10" / name
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def test_a_radius_gives_back_the_votes_that_it_was_computed_from(tmp_path):
    counts = [50_600, 84_600, 99_000, 100_000]
    radii = [certified_radius(count, 100_000, alpha=0.001, sigma=0.25) for count in counts]
    lines = [f"{i}\t3\t{3 + i % 2}\t{radius:.4f}\t1\t0:00:01" for i, radius in enumerate(radii)]
    log = replay.read(logged(tmp_path, [*lines, "9\t3\t-1\t0.0\t0\t0:00:01"]), tmp_path, 500, 100_000)
    assert log.sigma == 0.25
    assert log.p[:4] * 100_000 == pytest.approx(counts, abs=15)
    assert 0.40 <= log.p[4] <= 0.502
    assert log.right.tolist() == [True, False, True, False, True]


def test_votes_of_a_log_that_has_them_are_taken_as_they_are(tmp_path):
    path = logged(tmp_path, ["0\t3\t3\t987", "1\t2\t3\t500"], "idx\tlabel\tpredict\tcount", "sigma_0.50")
    log = replay.read(path, tmp_path, 500, 1000)
    assert (log.sigma, log.p.tolist()) == (0.5, [0.987, 0.5])
    assert replay.read(logged(tmp_path / "other", ["1"], "no table", "sigma_1"), tmp_path, 5, 1000) is None


def test_votes_do_not_depend_on_what_was_asked_before_but_for_chance_and_never_fall():
    votes = [replay.Votes(0.9, 1000, (0, image)) for image in range(2000)]
    for one in votes:
        counts = [one.at(n) for n in (500, 10, 999, 100, 1000, 0)]
        assert counts == [one.at(n) for n in (500, 10, 999, 100, 1000, 0)]
        assert counts[5] == 0 <= counts[1] <= counts[3] <= counts[0] <= counts[2] <= counts[4]
    assert np.mean([one.at(10) for one in votes]) == pytest.approx(9, abs=0.15)
    assert np.std([one.at(100) for one in votes]) == pytest.approx(3, abs=0.3)


def test_the_bound_worked_by_hand():
    """p = 1 against one half: ln(1000) / ln 2 = 9.97 draws; p = 0 gives up after 8.6; one half takes them all."""
    log = replay.Log("x", 0.25, np.array([1.0, 0.0, 0.5]), np.array([True] * 3))
    assert replay.bound(log, Plan(1000, 0.001, 0.25, (0.0,))) == pytest.approx([9.966, 8.62, 1000], abs=1)


def test_a_folder_is_replayed_and_drawn(tmp_path, capsys, monkeypatch):
    lines = [f"{i}\t1\t1\t{radius}\t1\t0:00:01" for i, radius in enumerate((0.2, 0.4, 0.6, 0.9))]
    logged(tmp_path / "logs", lines)
    figure = tmp_path / "draws.png"
    monkeypatch.setattr(replay, "SIZES", (100, 400))
    words = [str(tmp_path / "logs"), "--samples", "400", "--radii", "0.25", "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", ["replay.py", *words])
    replay.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[3].rstrip(",") for row in rows] == ["cohen", "adaptive", "adaptive", "bound"]
    assert rows[0][4:6] == ["400", "1.00x"]
    assert figure.stat().st_size > 5000
