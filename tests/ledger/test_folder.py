"""Run folders: refusing strangers, resuming by whole blocks, reading back."""

from __future__ import annotations

import json

import pytest

from hydrabench.errors import LedgerError
from hydrabench.files import sha256_of
from hydrabench.ledger import RUN_SCHEMA, AttackRecord, find_run, open_run, read_run

HEADER = {"command": "attack", "settings": {"epsilon": "8/255", "steps": 50}, "started": "ignored", "world_size": 1}
BLOCKS = [(0, 1), (2, 3), (4,)]


def record(index: int) -> AttackRecord:
    return AttackRecord(index, f"sha{index}", 1, 1, seconds=0.5, robust=True, broken_by=None, step=None, margin=0.25)


def test_a_run_is_written_and_read_back(tmp_path):
    run = open_run(tmp_path / "run", HEADER, resume=False)
    assert not run.is_complete
    run.append([record(0), record(1)])
    run.append([record(2)])
    run.finish({"n": 3, "metrics": {}})
    again = read_run(tmp_path / "run")
    assert again.is_complete
    assert again.header["schema"] == RUN_SCHEMA
    assert [entry["index"] for entry in again.records()] == [0, 1, 2]
    assert next(again.records()) == {
        "index": 0,
        "input_sha": "sha0",
        "label": 1,
        "prediction": 1,
        "seconds": 0.5,
        "robust": True,
        "broken_by": None,
        "step": None,
        "margin": 0.25,
        "restart": None,
        "certified_by": None,
    }
    digest = sha256_of(again.records_path)
    expected = {"schema": "hydrabench.summary/1", "n": 3, "metrics": {}, "records_sha256": digest}
    assert again.summary() == expected


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    open_run(tmp_path, HEADER, resume=False)
    with pytest.raises(LedgerError, match="already holds a run; continue it with --resume or choose a new --out"):
        open_run(tmp_path, HEADER, resume=False)


def test_looking_for_a_run_refuses_folders_in_use_and_writes_nothing(tmp_path):
    assert find_run(tmp_path / "new", resume=False) is None
    assert not (tmp_path / "new").exists()
    open_run(tmp_path / "used", HEADER, resume=False)
    with pytest.raises(LedgerError, match="used already holds a run; continue it with --resume"):
        find_run(tmp_path / "used", resume=False)
    found = find_run(tmp_path / "used", resume=True)
    assert found is not None
    assert found.header["settings"] == HEADER["settings"]


def test_a_folder_with_other_files_is_not_used(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(LedgerError, match=r"is no run folder but holds thesis\.tex; choose a new --out"):
        open_run(tmp_path, HEADER, resume=True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="is a file; --out names a folder"):
        open_run(tmp_path / "file", HEADER, resume=False)


def test_resuming_with_other_settings_names_every_one_that_changed(tmp_path):
    open_run(tmp_path, HEADER, resume=False)
    changed = {
        **HEADER,
        "settings": {"epsilon": "2/255", "steps": 50, "restarts": 3},
        "started": "later",
        "world_size": 8,
    }
    expected = 'settings.epsilon was "8/255" and is now "2/255"; settings.restarts was null and is now 3; keep the'
    with pytest.raises(LedgerError, match=expected):
        open_run(tmp_path, changed, resume=True)


def test_resuming_what_has_not_started_starts_it(tmp_path):
    assert open_run(tmp_path / "new", HEADER, resume=True).keep_whole_blocks(BLOCKS) == 0


@pytest.mark.parametrize(
    ("lines", "torn", "whole"),
    [(0, b"", 0), (1, b"", 0), (2, b"", 1), (2, b'{"index": 2, "inp', 1), (3, b"", 1), (4, b"{", 2), (5, b"", 3)],
)
def test_a_torn_block_is_dropped_and_whole_ones_are_kept(tmp_path, lines, torn, whole):
    run = open_run(tmp_path, HEADER, resume=False)
    run.append([record(index) for index in range(lines)])
    intact = run.records_path.read_bytes()
    run.records_path.write_bytes(intact + torn)
    assert run.keep_whole_blocks(BLOCKS) == whole
    kept = sum(map(len, BLOCKS[:whole]))
    assert run.records_path.read_bytes() == b"".join(intact.splitlines(keepends=True)[:kept])


def test_a_ledger_of_other_images_is_not_continued(tmp_path):
    run = open_run(tmp_path, HEADER, resume=False)
    run.append([record(7), record(8)])
    with pytest.raises(LedgerError, match="holds other images than this command selects"):
        run.keep_whole_blocks(BLOCKS)


def test_a_damaged_line_is_named(tmp_path):
    run = open_run(tmp_path, HEADER, resume=False)
    run.append([record(0)])
    with run.records_path.open("a") as file:
        file.write("not json\n")
    with pytest.raises(LedgerError, match=r"records\.jsonl, line 2, is not a record"):
        list(run.records())


def test_a_folder_without_a_run_and_an_unknown_schema_are_refused(tmp_path):
    with pytest.raises(LedgerError, match=r"is not a run folder: it holds no run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"schema": "hydrabench.run/99"}))
    with pytest.raises(LedgerError, match=r"has schema 'hydrabench\.run/99'; this version reads hydrabench\.run/1 and"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(LedgerError, match=r"run\.json is not readable as JSON"):
        read_run(tmp_path)


def test_a_summary_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(LedgerError, match=r"summary\.json does not exist; the run has not finished"):
        open_run(tmp_path, HEADER, resume=False).summary()


# What a finished run left ----------------------------------------------------------------------


def finished(folder):
    run = open_run(folder, HEADER | {"dataset": {"n": 1, "fingerprint": "f"}}, resume=False)
    run.append([record(0)])
    run.finish({"n": 1, "metrics": {}})
    return read_run(folder)


@pytest.mark.parametrize("name", ["summary.json", "records.jsonl"])
def test_a_finished_run_that_lost_a_file_is_not_complete(tmp_path, name):
    run = finished(tmp_path)
    assert run.is_complete
    (tmp_path / name).unlink()
    assert not run.is_complete
    assert run.lost() == [name]


def test_a_finished_training_run_without_its_checkpoint_is_not_complete(tmp_path):
    run = open_run(tmp_path, HEADER, resume=False)
    (tmp_path / "checkpoint.safetensors").write_text("tensors")
    run.finish({"n": 1, "metrics": {}, "checkpoint_sha256": sha256_of(tmp_path / "checkpoint.safetensors")})
    run.require_intact()
    (tmp_path / "checkpoint.safetensors").write_text("others")
    with pytest.raises(LedgerError, match=r"checkpoint\.safetensors has SHA-256 .*, its summary\.json says"):
        run.require_intact()
    (tmp_path / "checkpoint.safetensors").unlink()
    assert (run.is_complete, run.lost()) == (False, ["checkpoint.safetensors"])


def test_a_ledger_that_is_not_the_one_in_the_summary_is_refused(tmp_path):
    run = finished(tmp_path)
    run.require_intact()
    with run.records_path.open("a") as file:
        file.write("\n")
    with pytest.raises(
        LedgerError, match=r"records\.jsonl has SHA-256 .*…, its summary\.json says .*; one was altered"
    ):
        run.require_intact()


def test_a_summary_whose_hash_was_taken_out_is_refused(tmp_path):
    run = finished(tmp_path)
    summary = run.summary()
    del summary["records_sha256"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(LedgerError, match=r"summary\.json was altered: it holds no hash"):
        run.require_intact()


# With what a run was made ----------------------------------------------------------------------


def test_the_environments_say_which_records_each_made(tmp_path):
    run = open_run(tmp_path, HEADER, resume=False)
    first, later = {"torch": "2.8", "device": "cpu"}, {"torch": "2.9", "device": "cuda", "gpu": "H100"}
    assert run.note_environment(first, first_record=0) == []
    assert run.note_environment(first, first_record=4) == []
    assert run.note_environment(later, first_record=7) == [
        "device cuda instead of cpu",
        "gpu H100 instead of None",
        "torch 2.9 instead of 2.8",
    ]
    assert read_run(tmp_path).header["environments"] == [{"first_record": 0, **first}, {"first_record": 7, **later}]


def test_the_environment_of_a_run_is_that_of_its_last_records(tmp_path):
    run = open_run(tmp_path, HEADER, resume=False)
    assert run.environment == {}
    run.note_environment({"torch": "2.7"}, first_record=0)
    run.note_environment({"torch": "2.8"}, first_record=3)
    assert run.environment == {"torch": "2.8"}


def test_a_run_of_an_earlier_schema_is_read_and_not_continued(tmp_path):
    open_run(tmp_path, HEADER | {"schema": "hydrabench.run/1"}, resume=False)
    assert read_run(tmp_path).header["command"] == HEADER["command"]
    with pytest.raises(LedgerError, match=r"schema was \"hydrabench\.run/1\" and is now .*; .* choose a new --out"):
        open_run(tmp_path, HEADER, resume=True)


def test_a_run_about_other_images_is_not_continued(tmp_path):
    open_run(tmp_path / "a", HEADER | {"dataset": {"n": 1, "fingerprint": "f"}}, resume=False)
    with pytest.raises(LedgerError, match=r"cannot resume .*: dataset\.images are not those it was started with"):
        open_run(tmp_path / "a", HEADER | {"dataset": {"n": 1, "fingerprint": "g"}}, resume=True)


def test_a_ledger_with_records_beyond_the_selection_is_not_continued(tmp_path):
    run = open_run(tmp_path, HEADER, resume=False)
    run.append([record(index) for index in range(6)])
    with pytest.raises(LedgerError, match="holds more records than this command selects"):
        run.keep_whole_blocks(BLOCKS)


@pytest.mark.parametrize(
    "text", ['{"schema": 1, "schema": 2}', '{"a": NaN}', "[" * 100_000, f'{{"a": {"9" * 5000}}}'], ids=range(4)
)
def test_json_that_readers_would_not_agree_on_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(LedgerError, match=r"run\.json is not readable as JSON"):
        read_run(tmp_path)
