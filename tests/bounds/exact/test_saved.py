"""A killed search goes on inside its images, and ends as if nobody had killed it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from hydrabench.bounds.exact import saved, search
from hydrabench.bounds.exact.saved import kept_in
from hydrabench.cli import main

SEEDS = (1, 4)  # images whose smallest margin is just below 0, which take many rounds if nothing is confirmed


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(autouse=True)
def _every_round(monkeypatch):
    monkeypatch.setattr(saved, "EVERY", 0.0)
    monkeypatch.setattr(search, "ROUND", 4)


@pytest.fixture
def die(monkeypatch):
    """Make searches end after so many rounds; 0 lets them live. The list counts rounds."""
    rounds: list[int] = []
    advance = search._Search._advance

    def planned(after):
        rounds.clear()

        def once(one, parents):
            if after and len(rounds) == after:
                raise KilledError
            rounds.append(len(parents))
            advance(one, parents)

        monkeypatch.setattr(search._Search, "_advance", once)
        return rounds

    return planned


def decided(instance):
    return instance.decide(80, lambda image, _points: [None] * len(image))


def numbers(decisions):
    return [(one.verdict, one.lower, one.subproblems) for one in decisions]


def killed_and_resumed(instance, folder, die):
    """Return what a search says that is killed twice, and how many rounds its last start took."""
    for _ in range(2):
        die(3)
        with pytest.raises(KilledError), kept_in(folder, "rank0"):
            decided(instance)
    rounds = die(0)
    with kept_in(folder, "rank7"):
        return decided(instance), len(rounds)


@pytest.mark.parametrize("images", [1, 3])
def test_a_killed_search_ends_like_one_that_was_not(make_instance, tmp_path, die, images):
    for seed in SEEDS:
        instance = make_instance(seed, images=images)
        rounds = die(0)
        whole, needed = decided(instance), len(rounds)
        assert needed > 6
        found, left = killed_and_resumed(instance, tmp_path, die)
        assert numbers(found) == numbers(whole)
        assert left == needed - 6
        assert not [*tmp_path.iterdir()]


def test_a_state_of_another_problem_or_a_damaged_one_is_left_alone(make_instance, tmp_path, die):
    one, other = (make_instance(seed, images=1) for seed in SEEDS)
    die(3)
    with pytest.raises(KilledError), kept_in(tmp_path, "rank0"):
        decided(one)
    rounds = die(0)
    alone, needed = decided(other), len(rounds)
    rounds = die(0)
    with kept_in(tmp_path, "rank1"):
        assert [each.lower for each in decided(other)] == [each.lower for each in alone]
    assert len(rounds) == needed
    (tmp_path / f"rank0{saved.SUFFIX}").write_bytes(b"PK nothing")
    with kept_in(tmp_path, "rank0"):
        decided(one)


def test_a_state_that_is_too_large_is_not_written(make_instance, tmp_path, die, monkeypatch):
    monkeypatch.setattr(saved, "MOST", 0)
    die(3)
    with pytest.raises(KilledError), kept_in(tmp_path, "rank0"):
        decided(make_instance(1, images=1))
    assert not [*tmp_path.iterdir()]


def loses_one(subproblems):
    return subproblems[:-1]


def loses_multipliers(subproblems):
    return [replace(each, multipliers=each.multipliers * 0) for each in subproblems]


def loses_bounds(subproblems):
    return [replace(each, lower=1e-3) for each in subproblems]


@pytest.mark.parametrize("planted", [loses_one, loses_multipliers, loses_bounds])
def test_a_state_that_loses_something_is_caught(make_instance, tmp_path, die, monkeypatch, planted):
    packed = saved._packed
    monkeypatch.setattr(saved, "_packed", lambda subproblems: packed(planted(subproblems)))
    same = []
    for seed in SEEDS:
        instance = make_instance(seed, images=1)
        die(0)
        whole = decided(instance)
        try:
            found, _ = killed_and_resumed(instance, tmp_path, die)
        except pytest.fail.Exception:  # the search ended before it could be killed again
            same.append(False)
        else:
            same.append(numbers(found) == numbers(whole))
    assert not all(same)


def test_the_command_goes_on_inside_an_image(tmp_path, die):
    words = ["certify", "--ckpt", "digits-trades-90", "--method", "exact", "--epsilon", "16/255", "--index", "30"]
    words += ["--max-subproblems", "60", "--out"]

    def record(folder):
        return {**json.loads((tmp_path / folder / "records.jsonl").read_text()), "seconds": 0}

    die(0)
    assert CliRunner().invoke(main, [*words, str(tmp_path / "whole")]).exit_code == 0
    die(2)
    assert isinstance(CliRunner().invoke(main, [*words, str(tmp_path / "run")]).exception, KilledError)
    assert [path.name for path in (tmp_path / "run").glob(f"*{saved.SUFFIX}")] == [f"rank0{saved.SUFFIX}"]
    die(0)
    done = CliRunner().invoke(main, [*words, str(tmp_path / "run"), "--resume"])
    assert done.exit_code == 0, done.output
    assert record("run") == record("whole")
    assert not [*(tmp_path / "run").glob(f"*{saved.SUFFIX}")]
