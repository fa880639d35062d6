"""How an evaluation goes on: with more images, on other images, after its files were lost or altered."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hydrabench.data import load_images
from hydrabench.errors import LedgerError
from hydrabench.evaluators import AutoAttackSettings, PgdSettings, SmoothingSettings
from hydrabench.ledger import writing
from hydrabench.workflows.evaluation import evaluate as workflow
from hydrabench.workflows.evaluation import loading
from hydrabench.workflows.evaluation.evaluate import evaluate

PGD = PgdSettings(epsilon="8/255", steps=3)
SMOOTHING = SmoothingSettings(sigma=0.1, n0=10, samples=60)
DIGITS = load_images("digits", "test")


def read(folder, name="run.json"):
    return json.loads((folder / name).read_text())


def replace_images(monkeypatch, change):
    """Let the next evaluation find `change(DIGITS)` where the digits were."""
    monkeypatch.setattr(loading, "load_images", lambda *_, **__: change(DIGITS))


def other_pixels(index):
    def change(images):
        pixels = images.images.clone()
        pixels[index] = 255 - pixels[index]
        return replace(images, images=pixels)

    return change


def other_label(index):
    def change(images):
        labels = images.labels.clone()
        labels[index] = (labels[index] + 1) % 10
        return replace(images, labels=labels)

    return change


# More images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [PGD, SMOOTHING], ids=lambda settings: settings.kind)
def test_a_run_grows_and_what_was_done_stays(subject, cpu, tmp_path, comparable, capsys, settings):
    sizes = {"pgd": (50, 130, 230), "smoothing": (2, 3, 5)}[settings.kind]
    evaluate(subject, settings, tmp_path / "whole", options=cpu, n=sizes[-1])
    lines = b""
    for n in sizes:
        evaluate(subject, settings, tmp_path / "grown", options=cpu, n=n, resume=True)
        ledger = (tmp_path / "grown" / "records.jsonl").read_bytes()
        assert ledger.startswith(lines)  # to the last digit of the times: nothing was done again
        lines = ledger
        assert read(tmp_path / "grown")["dataset"]["n"] == read(tmp_path / "grown", "summary.json")["n"] == n
    grown, whole = comparable(tmp_path / "grown"), comparable(tmp_path / "whole")
    assert [record["index"] for record in grown] == list(range(sizes[-1]))
    verdicts = [[(record["prediction"], record.get("robust")) for record in records] for records in (grown, whole)]
    assert verdicts[0] == verdicts[1]
    headers = [read(tmp_path / name)["dataset"] for name in ("grown", "whole")]
    assert headers[0]["fingerprint"] == headers[1]["fingerprint"]
    assert f"grows from {sizes[1]} to {sizes[2]} images; {sizes[1]} are kept" in capsys.readouterr().err


def test_autoattack_by_blocks_keeps_whole_ones_only_and_grows_to_the_same_records(subject, cpu, tmp_path, comparable):
    """Attacks of the first protocol see a block as one batch, so that a part of one is another batch."""
    settings = AutoAttackSettings(epsilon="128/255", version=1)
    evaluate(subject, settings, tmp_path / "whole", options=cpu, n=3)
    for n in (2, 3):
        evaluate(subject, settings, tmp_path / "grown", options=cpu, n=n, resume=True)
    assert comparable(tmp_path / "grown") == comparable(tmp_path / "whole")
    assert "cuts" not in read(tmp_path / "grown")["dataset"]


def test_explicit_images_grow_at_their_end_only(subject, cpu, tmp_path):
    evaluate(subject, PGD, tmp_path, options=cpu, indices=[3, 17])
    evaluate(subject, PGD, tmp_path, options=cpu, indices=[3, 17, 20], resume=True)
    assert read(tmp_path)["dataset"]["indices"] == [3, 17, 20]
    with pytest.raises(LedgerError, match=r"dataset\.indices was \[3, 17, 20\] and is now \[3, 5, 17, 20\]"):
        evaluate(subject, PGD, tmp_path, options=cpu, indices=[3, 5, 17, 20], resume=True)
    with pytest.raises(LedgerError, match=r"dataset\.indices was \[3, 17, 20\] and is now null"):
        evaluate(subject, PGD, tmp_path, options=cpu, n=30, resume=True)


def test_a_run_does_not_grow_without_resume_nor_under_other_settings(subject, cpu, tmp_path):
    evaluate(subject, PGD, tmp_path, options=cpu, n=10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LedgerError, match="already holds a run; continue it with --resume"):
        evaluate(subject, PGD, tmp_path, options=cpu, n=20)
    with pytest.raises(LedgerError, match=r"settings\.steps was 3 and is now 4"):
        evaluate(subject, PGD.model_copy(update={"steps": 4}), tmp_path, options=cpu, n=20, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def forget(run, *names, **changed):
    """Take settings out of run.json, as if the run were from before there were those."""
    header = read(run)
    settings = {key: value for key, value in header["settings"].items() if key not in names}
    (run / "run.json").write_text(json.dumps({**header, "settings": settings, **changed}))


def test_a_run_from_before_there_was_a_setting_goes_on_with_its_default(subject, cpu, tmp_path, capsys):
    evaluate(subject, PGD, tmp_path, options=cpu, n=10)
    forget(tmp_path, "momentum", "targets")
    assert evaluate(subject, PGD, tmp_path, options=cpu, n=20, resume=True)["n"] == 20
    assert (
        "before these settings, which count as their defaults there: momentum 0.0, targets 0" in capsys.readouterr().err
    )
    with pytest.raises(LedgerError, match=r"protocol was .*; settings\.momentum was null and is now 0\.5"):
        evaluate(subject, PGD.model_copy(update={"momentum": 0.5}), tmp_path, options=cpu, n=20, resume=True)


def test_the_protocol_decides_what_a_missing_setting_was(subject, cpu, tmp_path):
    """A run of another value, or of another version of the protocol, is not taken for one of the default."""
    evaluate(subject, PGD.model_copy(update={"momentum": 0.5}), tmp_path, options=cpu, n=10)
    forget(tmp_path, "momentum")
    with pytest.raises(LedgerError, match=r'protocol was "pgd-3-m0\.5@2" and is now "pgd-3@2"'):
        evaluate(subject, PGD, tmp_path, options=cpu, n=20, resume=True)
    forget(tmp_path, "version", protocol="pgd-3@1")
    with pytest.raises(LedgerError, match=r'protocol was "pgd-3@1" and is now "pgd-3@2"'):
        evaluate(subject, PGD, tmp_path, options=cpu, n=20, resume=True)


# Other images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [other_pixels(7), other_label(7)], ids=["pixels", "label"])
@pytest.mark.parametrize("n", [10, 20], ids=["as many", "more"])
def test_a_run_is_not_continued_on_other_images(subject, cpu, tmp_path, monkeypatch, change, n):
    evaluate(subject, PGD, tmp_path, options=cpu, n=10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace_images(monkeypatch, change)
    with pytest.raises(LedgerError, match=r"cannot resume .*: dataset\.images are not those it was started with"):
        evaluate(subject, PGD, tmp_path, options=cpu, n=n, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_may_grow_where_images_that_it_has_not_seen_are_others(subject, cpu, tmp_path, monkeypatch):
    evaluate(subject, PGD, tmp_path, options=cpu, n=10)
    replace_images(monkeypatch, other_pixels(15))
    assert evaluate(subject, PGD, tmp_path, options=cpu, n=20, resume=True)["n"] == 20


def test_a_record_that_is_kept_must_be_about_the_image_that_is_here(subject, cpu, tmp_path):
    evaluate(subject, PGD, tmp_path, options=cpu, n=10)
    header, lines = read(tmp_path), (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run.json").write_text(json.dumps(header | {"status": "running"}))
    sha = json.loads(lines[4])["input_sha"]
    (tmp_path / "records.jsonl").write_text("".join(lines).replace(sha, "ab" * 32))
    with pytest.raises(LedgerError, match="has a record of image 4 with other pixels or another label than here"):
        evaluate(subject, PGD, tmp_path, options=cpu, n=10, resume=True)


# Lost, altered, taken --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["summary.json", "records.jsonl"])
def test_a_finished_run_that_lost_a_file_makes_it_again(subject, cpu, tmp_path, comparable, capsys, name):
    summary = evaluate(subject, PGD, tmp_path, options=cpu, n=10)
    records = comparable(tmp_path)
    (tmp_path / name).unlink()
    again = evaluate(subject, PGD, tmp_path, options=cpu, n=10, resume=True)
    assert (again["metrics"], comparable(tmp_path)) == (summary["metrics"], records)
    assert f"was complete, but {name} is gone; what is missing is made again" in capsys.readouterr().err


def test_a_record_that_cannot_be_is_not_continued_from(subject, cpu, tmp_path):
    evaluate(subject, PGD, tmp_path, options=cpu, n=10)
    header = read(tmp_path) | {"status": "running"}
    (tmp_path / "run.json").write_text(json.dumps(header))
    text = (tmp_path / "records.jsonl").read_text()
    (tmp_path / "records.jsonl").write_text(text.replace('"robust": false', '"robust": true'))
    with pytest.raises(LedgerError, match=r"the record of image \d .*says robust True, broken_by '"):
        evaluate(subject, PGD, tmp_path, options=cpu, n=10, resume=True)


def test_a_finished_run_whose_ledger_was_altered_is_refused(subject, cpu, tmp_path):
    evaluate(subject, PGD, tmp_path, options=cpu, n=10)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(LedgerError, match=r"records\.jsonl has SHA-256 .*, its summary\.json says .*one was altered"):
        evaluate(subject, PGD, tmp_path, options=cpu, n=10, resume=True)


def test_a_folder_that_another_process_writes_is_refused(subject, cpu, tmp_path):
    with (
        writing(tmp_path / "run"),
        pytest.raises(LedgerError, match=r"run is being written by process \d+ on .*, started 20.*; wait until"),
    ):
        evaluate(subject, PGD, tmp_path / "run", options=cpu, n=10)
    assert not (tmp_path / "run").exists()


def test_another_device_is_said_and_its_records_are_named(subject, cpu, tmp_path, monkeypatch, capsys):
    evaluate(subject, PGD, tmp_path, options=cpu, n=10)
    monkeypatch.setattr(workflow, "environment", lambda _: {"device": "cuda", "torch": "9.9"})
    evaluate(subject, PGD, tmp_path, options=cpu, n=20, resume=True)
    first, later = read(tmp_path)["environments"]
    assert (first["first_record"], first["device"]) == (0, "cpu")
    assert later == {"first_record": 10, "device": "cuda", "torch": "9.9"}
    said = capsys.readouterr().err
    assert "device cuda instead of cpu, " in said
    assert f"torch 9.9 instead of {first['torch']}, " in said
