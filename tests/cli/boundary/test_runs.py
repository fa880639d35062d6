"""Run folders and tables that are damaged in every way, read by report: one line each, and no folder left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from hydrabench.files import sha256_of
from tests.helpers.boundaries import DIGITS, HEAD, LONG, cases

HEADERS = {  # changes of run.json, and what is said of them
    "null": (lambda header: None, r"run\.json does not hold a JSON object|run\.json"),
    "no dataset": (lambda header: header.pop("dataset"), r"dataset"),
    "dataset null": (lambda header: header.update(dataset=None), r"dataset"),
    "dataset a number": (lambda header: header.update(dataset=3), r"dataset"),
    "a trillion images": (lambda header: header["dataset"].update(n=10**12), r"dataset\.n is 10{12}"),
    "ten million images": (lambda header: header["dataset"].update(n=10**7), r"holds 3 records but selects 10{7}"),
    "no images": (lambda header: header["dataset"].update(n=0), r"dataset\.n"),
    "n a text": (lambda header: header["dataset"].update(n="many"), r"dataset\.n"),
    "settings null": (lambda header: header.update(settings=None), r"settings"),
    "kind a list": (lambda header: header["settings"].update(kind=["clean"]), r"kind"),
    "kind unknown": (lambda header: header["settings"].update(kind="prayer"), r"'prayer'"),
    "schema": (lambda header: header.update(schema=DIGITS), r"schema '9+"),
    "status": (lambda header: header.update(status=[]), r"not complete \(status \[\]"),
    "checkpoint": (lambda header: header.update(checkpoint="x"), r"checkpoint"),
    "precision": (lambda header: header.update(precision=32), r"precision"),
}
RUN_JSON = {
    "nan": ('{"schema": NaN}', r"NaN is no JSON number"),
    "brackets": ("[" * 100_000, r"nested too deeply"),
    "digits": ('{"schema": ' + DIGITS + "}", r"more than 4,300 digits"),
    "twice": ('{"schema": 1, "schema": 2}', r"the key 'schema' stands twice"),
    "torn": ('{"schema": ', r"is not readable as JSON"),
    "binary": ("\x00\xff", r"run\.json"),
    "empty": ("", r"is not readable as JSON"),
}
RECORDS = {  # a fourth line of records.jsonl
    "null": ("null", r"line 4, is not a record"),
    "no index": ("{}", r"line 4, is not a record"),
    "index a text": ('{"index": "3"}', r"line 4, is not a record"),
    "index true": ('{"index": true}', r"line 4|image"),
    "nan": ('{"index": 3, "seconds": NaN}', r"NaN is no JSON number|line 4"),
    "brackets": ("[" * 100_000, r"line 4.*nested too deeply"),
    "digits": ('{"index": ' + DIGITS + "}", r"line 4.*more than 4,300 digits"),
    "twice": ('{"index": 3, "index": 4}', r"line 4.*'index' stands twice"),
    "torn": ('{"index": 3', r"line 4"),
    "one too many": ('{"index": 3}', r"records but selects 3 images|image 3"),
    "a trillion": ('{"index": 1000000000000}', r"4 records but selects 3 images|image 10{12}|lacks"),
}
TABLES = {
    "": r"line 1, should name the columns",
    HEAD: r"holds no line with an image",
    HEAD + f"{DIGITS}\t1\t1\t0.1\t1\t0:00:01": r"idx is '9+…9+', which should be a whole number",
    HEAD + f"0\t1\t1\t1e{DIGITS}\t1\t0:00:01": r"radius is '1e9+…9+', which should be a number",
    HEAD + "0\t1\t1\tinf\t1\t0:00:01": r"radius is 'inf'",
    HEAD + "0\t1\t1\t1e999\t1\t0:00:01": r"radius is '1e999', which is not finite",
    HEAD + "0\t1\t1\t0.1\t1\tsoon": r"time is 'soon'",
    HEAD + "0\t1\t1\t0.1\t1\t" + "9" * 400: r"time is '9+",
    HEAD + "0\t1\t1": r"line 2: has 3 fields",
}
REPORTS = {
    ("report", "nowhere", "--out", "report"): r"nowhere does not exist",
    ("report", "recipe.yml", "--out", "report"): r"recipe\.yml is a file",
    ("report", "/dev/zero", "--out", "report"): r"/dev/zero is a file",
    ("report", LONG, "--out", "report"): r"file name too long",
    ("report", "loop", "--out", "report"): r"loop",
    ("report", "runs", "--out", LONG): r"file name too long",
    ("report", "runs", "--out", "/dev/null/report"): r"/dev/null/report",
    ("report", "runs", "--out", "/proc/report"): r"/proc/report: no such file or directory",
    ("report", "runs", "--out", "report", "--format", LONG): r"unknown report format 'x+…x+'",
    (
        "report",
        "runs",
        "--out",
        "report",
        "--import",
        "cohen",
        "/dev/zero,name=a,dataset=cifar10,sigma=0.25",
    ): r"/dev/z",
    ("report", "runs", "--out", "report", "--import", "cohen", "pipe,name=a,dataset=cifar10,sigma=0.25"): r"pipe",
    ("report", "runs", "--out", "report", "--import", "cohen", "t.tsv,name=a,dataset=c,sigma=inf"): r"sigma: .*finite",
    ("report", "runs", "--out", "report", "--import", "cohen", "t.tsv,name=a,dataset=c,sigma=1e99"): r"sigma",
    ("report", "runs", "--out", "report", "--import", "nobody", "t.tsv"): r"unknown import 'nobody'",
    ("report", "--out", "report"): r"Missing argument",
}


@cases(REPORTS)
def test_a_report_of_what_is_none(answered, given, message):
    answered(message, *given)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_cannot_be(answered, world, tmp_path, name):
    change, message = HEADERS[name]
    header = json.loads((world / "runs" / "clean" / "run.json").read_text())
    written = None if name == "null" else (change(header), header)[1]
    bad = copied(world, tmp_path)
    (bad / "run.json").write_text(json.dumps(written))
    answered(message, "report", bad, "--out", tmp_path / "report")


@pytest.mark.parametrize("name", RUN_JSON)
def test_a_run_json_that_is_none(answered, world, tmp_path, name):
    text, message = RUN_JSON[name]
    bad = copied(world, tmp_path)
    (bad / "run.json").write_bytes(text.encode("latin-1"))
    answered(message, "report", bad, "--out", tmp_path / "report")
    answered(message, "attack", "--attack", "clean", "--ckpt", "dense.safetensors", "--out", bad, "--resume")


@pytest.mark.parametrize("name", RECORDS)
def test_a_line_that_is_no_record(answered, world, tmp_path, name):
    text, message = RECORDS[name]
    bad = copied(world, tmp_path)
    with (bad / "records.jsonl").open("a") as file:
        file.write(text + "\n")
    signed = json.loads((bad / "summary.json").read_text())
    signed["records_sha256"] = sha256_of(bad / "records.jsonl")  # or it would say that one was altered
    (bad / "summary.json").write_text(json.dumps(signed))
    answered(message, "report", bad, "--out", tmp_path / "report")


@pytest.mark.parametrize("name", ["run.json", "records.jsonl", "summary.json"])
def test_a_file_of_a_run_that_is_something_else(answered, world, tmp_path, name):
    for replace in (lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        bad = copied(world, tmp_path)
        (bad / name).unlink()
        replace(bad / name)
        answered(r"run|records|summary", "report", bad, "--out", tmp_path / "report")
        shutil.rmtree(bad)


@cases(TABLES)
def test_a_table_that_is_none(answered, tmp_path, given, message):
    (tmp_path / "t.tsv").write_text(given)
    text = f"{tmp_path / 't.tsv'},name=a,dataset=cifar10,sigma=0.25"
    answered(message, "report", "--import", "cohen", text, "--out", tmp_path / "report")


def copied(world: Path, folder: Path) -> Path:
    """A good run, to be damaged."""
    return Path(shutil.copytree(world / "runs" / "clean", folder / "bad"))
