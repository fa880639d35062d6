"""Attacks that run one after another: shares that any number of processes finish, and that survive a kill."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from hydrabench.errors import LedgerError, MemoryShortageError
from hydrabench.evaluators import EVALUATORS, AutoAttackSettings
from hydrabench.ledger import Attempt
from hydrabench.workflows.evaluation import evaluate as evaluation
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.in_turn import ShareSize, Standing
from hydrabench.workflows.evaluation.judging import Judge

SETTINGS = AutoAttackSettings(epsilon="8/255")
ATTACKS = ("clean", *SETTINGS.order)
FIRST_VERSION = AutoAttackSettings(epsilon="8/255", version=1)


@pytest.fixture
def calls(monkeypatch):
    """Attacks that break an image by its number, and which shares they were given."""
    seen = []

    def attempt(_network, block, name, _settings, *, heard):
        heard()
        seen.append((name, block.indices))
        labels = block.labels.tolist()
        broken = {index: (index * 7 + ATTACKS.index(name) * 3) % 11 == 0 for index in block.indices}
        return [
            Attempt(index, name, broken[index], 0.5 if broken[index] else -0.5, (label + broken[index]) % 10, 0.01)
            for index, label in zip(block.indices, labels, strict=True)
        ], block.images

    original = EVALUATORS["autoattack"]
    fake = replace(original, in_turn=replace(original.in_turn, attempt=attempt))
    monkeypatch.setitem(EVALUATORS, "autoattack", fake)
    return seen


def attempts(folder):
    lines = (folder / "attacks.jsonl").read_text().splitlines()
    return [(entry["image"], entry["attack"]) for entry in map(json.loads, lines)]


def expected(n):
    """The attempts that images get: every attack up to the first that breaks them."""
    found = []
    for index in range(n):
        for place, name in enumerate(ATTACKS):
            found.append((index, name))
            if (index * 7 + place * 3) % 11 == 0:
                break
    return found


def test_every_image_meets_each_attack_once_until_one_breaks_it(subject, cpu, tmp_path, calls):
    evaluate(subject, SETTINGS, tmp_path, options=cpu, n=230)
    assert sorted(attempts(tmp_path)) == sorted(expected(230))
    assert [name for name, _ in calls] == sorted([name for name, _ in calls], key=ATTACKS.index)
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == list(range(230))
    for record in records:
        tried = [name for index, name in expected(230) if index == record["index"]]
        broken = (record["index"] * 7 + ATTACKS.index(tried[-1]) * 3) % 11 == 0
        assert (record["robust"], record["broken_by"]) == (not broken, tried[-1] if broken else None)
        assert record["seconds"] == pytest.approx(0.01 * len(tried))
        assert record["step"] == (0 if record["broken_by"] == "clean" else None)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_shares_hold_what_is_left_and_stay_full(subject, cpu, tmp_path, calls, comparable, monkeypatch, size):
    evaluate(subject, SETTINGS, tmp_path / "whole", options=cpu, n=130)
    calls.clear()
    monkeypatch.setattr(ShareSize, "__call__", lambda _self, _passes: size)
    evaluate(subject, SETTINGS, tmp_path / "cut", options=cpu, n=130)
    assert comparable(tmp_path / "cut") == comparable(tmp_path / "whole")
    for name in ATTACKS:
        shares = [indices for called, indices in calls if called == name]
        assert all(len(share) == size for share in shares[:-1])
        assert [index for share in shares for index in share] == sorted(
            index for index, tried in expected(130) if tried == name
        )


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_run_that_is_killed_goes_on_with_the_share_at_which_it_stopped(
    subject, cpu, tmp_path, calls, comparable, monkeypatch, stop
):
    evaluate(subject, SETTINGS, tmp_path / "whole", options=cpu, n=130)
    monkeypatch.setattr(ShareSize, "__call__", lambda _self, _passes: 40)
    original, count = Judge.attempts, [0]

    def killed(self, *arguments):
        count[0] += 1
        if count[0] == stop:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "attempts", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(subject, SETTINGS, tmp_path / "run", options=cpu, n=130)
    log = tmp_path / "run" / "attacks.jsonl"
    kept = log.read_bytes() if log.exists() else b""
    with log.open("ab") as file:
        file.write(b'{"image": 3, "atta')
    monkeypatch.setattr(ShareSize, "__call__", lambda _self, _passes: 23)
    evaluate(subject, SETTINGS, tmp_path / "run", options=cpu, n=130, resume=True)
    assert log.read_bytes().startswith(kept)
    assert sorted(attempts(tmp_path / "run")) == sorted(expected(130))  # nothing ran twice
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")


def test_a_run_grows_to_more_images_and_attacks_only_the_new_ones(subject, cpu, tmp_path, calls, comparable):
    evaluate(subject, SETTINGS, tmp_path / "whole", options=cpu, n=250)
    for n in (30, 120, 250):
        calls.clear()
        evaluate(subject, SETTINGS, tmp_path / "grown", options=cpu, n=n, resume=True)
    assert min(index for _, indices in calls for index in indices) == 120
    assert comparable(tmp_path / "grown") == comparable(tmp_path / "whole")


def test_where_the_block_decides_a_share_is_what_is_left_of_a_block(subject, cpu, tmp_path, calls):
    evaluate(subject, FIRST_VERSION, tmp_path, options=cpu, n=130)
    for name, indices in calls:
        assert {index // 100 for index in indices} in ({0}, {1})
        of_block = [i for i, tried in expected(130) if tried == name and i // 100 == indices[0] // 100]
        assert list(indices) == sorted(of_block)


@pytest.mark.parametrize("torn", [40, 120, 130, 200, 240])
def test_of_such_a_block_a_share_that_is_not_whole_is_attacked_again(subject, cpu, tmp_path, calls, comparable, torn):
    """What a crash while a share was written may leave: some of its lines."""
    evaluate(subject, FIRST_VERSION, tmp_path / "run", options=cpu, n=130)
    whole, log = comparable(tmp_path / "run"), tmp_path / "run" / "attacks.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:torn]))
    (tmp_path / "run" / "records.jsonl").unlink()
    calls.clear()
    evaluate(subject, FIRST_VERSION, tmp_path / "run", options=cpu, n=130, resume=True)
    assert sorted(log.read_text().splitlines(keepends=True)) == sorted(lines)
    assert comparable(tmp_path / "run") == whole
    for name, indices in calls:
        of_block = [i for i, tried in expected(130) if tried == name and i // 100 == indices[0] // 100]
        assert list(indices) == sorted(of_block)


def test_a_share_that_does_not_fit_into_memory_is_halved(subject, cpu, tmp_path, calls, comparable, monkeypatch):
    evaluate(subject, SETTINGS, tmp_path / "whole", options=cpu, n=130)
    original = Judge.attempts

    def small(self, name, number, indices, heard):
        if len(indices) > 20:
            raise MemoryShortageError("out of memory")
        return original(self, name, number, indices, heard)

    monkeypatch.setattr(Judge, "attempts", small)
    calls.clear()
    evaluate(subject, SETTINGS, tmp_path / "run", options=cpu, n=130)
    assert max(len(indices) for _, indices in calls) == 16
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")


@pytest.mark.parametrize(("settings", "n"), [(SETTINGS, 1), (FIRST_VERSION, 3)])
def test_a_share_that_cannot_be_smaller_ends_the_run(subject, cpu, tmp_path, calls, monkeypatch, settings, n):
    def none(*_arguments):
        raise MemoryShortageError("out of memory on cpu at image 0")

    monkeypatch.setattr(Judge, "attempts", none)
    with pytest.raises(MemoryShortageError, match="at image 0"):
        evaluate(subject, settings, tmp_path, options=cpu, n=n)


class Process:
    """One of several processes, played by threads that compute one at a time."""

    lock = threading.Lock()

    def __init__(self, rank, size, barrier, table):
        self.rank, self.size, self.barrier, self.table = rank, size, barrier, table
        self.is_main = rank == 0

    def share(self, work):
        with self.lock:
            self.table[self.rank] = work()
        self.barrier.wait(30)
        found = [self.table[rank] for rank in range(self.size)]
        self.barrier.wait(30)
        return found

    def on_main(self, work):
        return self.share(work if self.is_main else lambda: None)[0]


@pytest.mark.parametrize("settings", [SETTINGS, FIRST_VERSION], ids=lambda settings: settings.protocol)
def test_processes_share_the_work_and_write_the_same_records(
    subject, cpu, tmp_path, calls, comparable, monkeypatch, settings
):
    evaluate(subject, settings, tmp_path / "one", options=cpu, n=250)
    barrier, table, failed = threading.Barrier(3), {}, []
    monkeypatch.setattr(evaluation, "World", lambda: worlds[threading.current_thread().name])
    monkeypatch.setattr(evaluation, "watched", lambda _watcher: evaluation.exact_arithmetic())
    monkeypatch.setattr(evaluation, "one_writer", lambda _out, _world: evaluation.exact_arithmetic())
    worlds = {f"rank{rank}": Process(rank, 3, barrier, table) for rank in range(3)}

    def work():
        try:
            evaluate(subject, settings, tmp_path / "three", options=cpu, n=250)
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, name=name) for name in worlds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert comparable(tmp_path / "three") == comparable(tmp_path / "one")
    assert sorted(attempts(tmp_path / "three")) == sorted(expected(250))


GOOD = {"image": 0, "attack": "clean", "broken": False, "loss": -0.5, "prediction": 3, "seconds": 0.1}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["no json"], r"attacks\.jsonl, line 1, is not an attempt"),
        ([{**GOOD, "broken": 1}], r"line 1, has no broken that can be"),
        ([{**GOOD, "loss": "low"}], r"line 1, has no loss that can be"),
        ([{**GOOD, "more": 1}], r"line 1, has no image that can be"),
        ([GOOD, {**GOOD, "image": 1, "attack": "fab"}], r"line 2, is about 'fab', the run has clean, apgd-ce, apgd-t"),
        ([GOOD, GOOD], r"image 0 has an attempt 'clean' after clean"),
        ([{**GOOD, "broken": True}, {**GOOD, "attack": "apgd-ce"}], r"image 0 has an attempt 'apgd-ce' after clean"),
        ([GOOD, {**GOOD, "attack": "square"}], r"image 0 has an attempt 'square' after clean"),
    ],
)
def test_attempts_that_cannot_be_are_refused(subject, cpu, tmp_path, calls, monkeypatch, lines, said):
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "attempts", lambda *_: pytest.fail("never comes so far"))
        with pytest.raises(pytest.fail.Exception):
            evaluate(subject, SETTINGS, tmp_path, options=cpu, n=5)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "attacks.jsonl").write_text("\n".join(text) + "\n")
    with pytest.raises(LedgerError, match=said + r".*remove attacks\.jsonl, and --resume attacks these images again"):
        evaluate(subject, SETTINGS, tmp_path, options=cpu, n=5, resume=True)


def test_the_size_of_a_share_follows_time_and_memory():
    size = ShareSize()
    assert size(200) == 64
    size.took(64, seconds=6.4, passes=200)  # half a millisecond a pass
    assert size(200) == 256  # four times what the device has held
    assert size(5000) == 24  # a minute
    assert size(200_000) == 16  # fewer would not pay
    size.was_too_much(256)
    assert size(200) == 128
    size.was_too_much(1)
    assert size(200) == 1


def test_standing_tells_what_waits_for_an_attack():
    standing = Standing(("clean", "square"), [3, 5, 8])
    assert standing.waiting("clean") == [3, 5, 8]
    standing.add([Attempt(3, "clean", True, 0.1, 1, 0.0), Attempt(5, "clean", False, -0.1, 2, 0.0)])
    assert (standing.waiting("clean"), standing.waiting("square")) == ([8], [5])
    assert [standing.is_settled(image) for image in (3, 5, 8)] == [True, False, False]
    standing.add([Attempt(5, "square", True, 0.2, 0, 0.0)])
    assert standing.losses() == (1, 1)  # wrong as they are, broken by an attack


def test_the_progress_line_names_the_attack_its_images_and_what_is_left(subject, cpu, tmp_path, calls, monkeypatch):
    notes = []
    monkeypatch.setattr(ShareSize, "__call__", lambda _self, _passes: 40)

    class Shown:
        def __enter__(self):
            return lambda pieces, note: notes.append((pieces, note))

        def __exit__(self, *_error):
            return None

    monkeypatch.setattr(evaluation, "tracking", lambda *_arguments, **_names: Shown())
    evaluate(subject, SETTINGS, tmp_path, options=cpu, n=100)
    first = "clean at images 0 to 39, 100 wait; 0 wrong, 0 broken; then apgd-ce, apgd-t, fab-t, square"
    assert notes[0][1] == first
    assert any(note.startswith("square at images") for _, note in notes)
    assert notes[-1][1].startswith("clean ")  # the totals, not what waited before the last attack
    assert sum(pieces for pieces, _ in notes) == pytest.approx(100)
