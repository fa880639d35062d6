"""Bad input of every kind, to every command: one line that names the value, exit code 1 or 2, in bounded time.

Each line of a table is one command. Nothing here may print a traceback, hang, or leave a run folder behind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hydrabench.cli import main
from hydrabench.files import sha256_of

SECONDS = 60.0  # for one command, which takes about one; a command that hangs does not end at all
LONG = "x" * 300
DIGITS = "9" * 5000
LAUGHS = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
RECIPES = {
    "brackets": "[" * 5000,
    "mappings": "{a: " * 5000,
    "laughs": LAUGHS,
    "cycle": "name: &a [*a]",
    "twice": "name: tiny\nname: other",
    "tag": "name: !!python/object/apply:os.getcwd []",
    "timestamp": "seed: !!timestamp soon",
    "unhashable": "? [1, 2]\n: 3",
    "nul": "name: \x00",
    "empty": "",
    "list": "- tiny",
    "number": "3",
    "open": "name: [tiny",
    "two": "name: a\n---\nname: b",
    "itself": "base: itself.yml",
    "gone": "base: nowhere.yml",
    "device": "base: /dev/zero",
    "long": f"base: {LONG}.yml",
    "wrong": "base: [a, b]",
    "large": "name: tiny\n" + "# filler\n" * 40_000,
}
SETTINGS = {  # of --set
    "train.lr=.inf": r"train\.lr: input should be a finite number",
    "train.lr=.nan": r"train\.lr: input should be a finite number",
    "train.lr=1e300": r"train.*lr: is at most 1,000,000,000, got 1e\+300",
    "train.lr=-1": r"train\.lr: input should be greater than 0",
    "train.lr=fast": r"train\.lr: input should be a valid number.*'fast'",
    "train.epochs=1000000000000000000000000": r"epochs: is at most 1,000,000,000, got 10{24}",
    f"train.epochs={DIGITS}": r"a number has more than 4,300 digits",
    "train.epochs=1.5": r"train\.epochs: input should be a valid integer.*1\.5",
    "train.epochs=true": r"epochs: is a number, got true",
    "train.batch_size=0": r"train\.batch_size: input should be greater than 0 \(got 0\)",
    "train.batch_size=99999999999": r"batch_size: is at most 1,000,000,000",
    "train.momentum=1": r"train\.momentum: input should be less than 1",
    "train.weight_decay=-.inf": r"train\.weight_decay: input should be",
    "seed=2024-13-45": r"seed: input should be a valid integer.*'2024-13-45'",
    "seed=2024-01-01": r"seed: input should be a valid integer.*'2024-01-01'",
    "seed=99999999999999999999": r"seed: is at most 9,223,372,036,854,775,807",
    "seed=-1": r"seed: input should be greater than or equal to 0",
    "seed=[[[[1]]]]": r"seed: input should be a valid integer",
    "name=../../etc": r"name: string should match pattern",
    "data.fraction=0": r"data\.fraction: input should be greater than 0",
    "data.fraction=1e-9": r"data\.fraction 1e-09 of \d+ training images leaves none",
    "data.crop_padding=1000000": r"data\.crop_padding: input should be less than or equal to 64",
    "data.name=": r"data\.name: input should be a valid string",
    "data.name=cifar11": r"unknown data set 'cifar11'; did you mean 'cifar10'",
    "model.arch=null": r"model\.arch: input should be a valid string",
    f"model.arch={LONG}": r"unknown architecture 'x+…x+'",
    "objective={name: trades, epsilon: 1e300}": r"epsilon '1e300' is not a radius",
    "objective={name: trades, epsilon: [8, 255]}": r"objective\.epsilon: is a radius in pixel units.*\[8, 255\]",
    "objective={name: stability, sigma: 64}": r"sigma '64' lies outside .* write 64/255",
    "objective={name: free, epsilon: 0.1, repeats: 1e12}": r"repeats: ",
    "[=1": r"unknown key|--set '\[=1'",
    "train=[1]": r"train: expected keys and values \(got \[1\]\)",
    "train.lr={": r"--set 'train\.lr=\{' is not YAML",
    "=": r"--set '=': write KEY=VALUE",
    "train.lr=" + "[" * 3000: r"nested more than 50 deep",
}
EVALUATED = {  # by both attack and certify
    ("--epsilon", "inf"): r"epsilon 'inf' is not a radius",
    ("--epsilon", "nan"): r"epsilon 'nan' is not a radius",
    ("--epsilon", "1e400"): r"epsilon '1e400' is not a radius",
    ("--epsilon", DIGITS): r"epsilon '9+…9+' is not a radius",
    ("--epsilon", "8/255/1"): r"epsilon '8/255/1' is not a radius",
    ("--epsilon", "٨/٢٥٥"): r"epsilon '٨/٢٥٥' is not a radius",
    ("--norm", "l2", "--epsilon", "64"): r"epsilon '64' lies outside .* write 64/255",
    ("--norm", "l3"): r"'--norm': 'l3' is not one of 'linf', 'l2'",
    ("--epsilon", "[red]"): r"epsilon '\[red\]' is not a radius",
    ("-n", "-5"): r"-n -5 is outside 1\.\.500",
    ("-n", str(10**30)): r"-n 10{30} is outside 1\.\.500",
    ("-n", DIGITS): r"Invalid value for '-n'",
    ("--skip", "0"): r"--skip 0 is outside 1\.\.500",
    ("--skip", "501"): r"--skip 501 is outside 1\.\.500",
    ("--skip", "20", "-n", "26"): r"-n 26 is outside 1\.\.25, 1 in 20 of the test images of digits",
    ("--ids", "nowhere.txt"): r"'nowhere\.txt' does not exist",
    ("--ids", "/dev/zero"): r"/dev/zero is a device or a pipe",
    ("--ids", "pipe"): r"pipe is a device or a pipe",
    ("--ids", "binary"): r"binary is not UTF-8 text",
    ("--ids", "ids.txt"): r"ids\.txt: '500' is outside 0\.\.499",
    ("--ids", "ids.txt", "--skip", "2"): r"--ids names the images and --skip 2 skips some",
    ("--device", "[/bold]"): r"device '\[/bold\]' is not available",
    ("--device", LONG): r"device 'x+",
    ("--threads", "0"): r"Invalid value for '--threads': 0",
    ("--threads", "1000000000"): r"Invalid value for '--threads': 1000000000",
    ("--data-dir", LONG): r"file name too long; choose a shorter name|data folder 'x+",
    ("--data-dir", "recipe.yml"): r"'recipe\.yml' is a file",
    ("--out", LONG): r"file name too long; choose a shorter name",
    ("--out", "/dev/null/run"): r"/dev/null.*: not a directory; a part of the path is a file",
    ("--out", "/proc/self/run"): r"/proc/self/run: no such file or directory; check the path",
    ("--out", "loop/run"): r"loop.*: too many levels of symbolic links",
    ("--out", "recipe.yml"): r"'recipe\.yml' is a file",
    ("--precision", "int8"): r"'--precision': 'int8' is not one of 'float32', 'float64'",
}
ATTACKED = {
    ("--steps", "0"): r"steps: input should be greater than 0 \(got 0\)",
    ("--steps", str(10**24)): r"steps: is at most 1,000,000,000, got 10{24}",
    ("--steps", "1e3"): r"Invalid value for '--steps'",
    ("--restarts", "-1"): r"restarts: input should be greater than 0",
    ("--seed", str(2**70)): r"seed: is at most",
    ("--attack", LONG): r"unknown \w+ 'x+…x+'",
}
SMOOTHED = {
    ("--sigma", "64"): r"sigma '64' lies outside \(0, 10\], .* write 64/255",
    ("--sigma", "1e300"): r"sigma '1e300' is no noise level|sigma: .*1e300|sigma '1e300' lies",
    ("--sigma", "0"): r"sigma: input should be greater than 0",
    ("--sigma", "nan"): r"sigma: input should be a finite number|sigma: .*'nan'",
    ("--sigma", "1/0"): r"sigma: .*'1/0'",
    ("--sigma", ","): r"sigma: .*''|--sigma , names",
    ("--samples", str(10**24)): r"samples: is at most 1,000,000,000, got 10{24}",
    ("--samples", "0"): r"samples: input should be greater than 0",
    ("--n0", "-3"): r"n0: input should be greater than 0",
    ("--alpha", "0"): r"alpha: input should be greater than 0",
    ("--alpha", "inf"): r"alpha: input should be",
    ("--radii", "0,inf"): r"radii.*: input should be a finite number",
    ("--radii", "0.5,0.25"): r"radii: ascend and differ",
    ("--radii", "a"): r"radii.*'a'",
    ("--batch", "0"): r"--batch 0 is no number of images|batch.*0",
    ("--index", "1e3"): r"--index '1e3' is no position",
    ("--index", DIGITS): r"--index .*(is no position|is outside|digits)",
    ("--index", "500"): r"--index 500 is outside 0\.\.499",
    ("--index", "3", "--skip", "2"): r"--index names the images one by one; leave -n, --skip and --ids out",
    ("--reuse", "nowhere"): r"nowhere is not a run folder",
}
BOUNDED = {
    ("--method", "cascade", "--methods", LONG): r"methods\.0: .*'x+…x+'",
    ("--method", "alpha-crown", "--iterations", str(10**24)): r"iterations: is at most 1,000,000,000",
    ("--method", "alpha-crown", "--learning-rate", "inf"): r"learning_rate: input should be a finite number",
    ("--method", "alpha-crown", "--time-limit", "nan"): r"time_limit: input should be a finite number",
    ("--export-vnnlib", "v", "--vnnlib-timeout", "nan"): r"--vnnlib-timeout is a number of seconds above 0, got nan",
    ("--export-vnnlib", "v", "--skip", "501"): r"--skip 501 is outside 1\.\.500",
}
CHECKPOINTS = {  # as --ckpt of attack, certify, prune and finetune, and REF of zoo export
    "empty.safetensors": r"empty\.safetensors is not a whole safetensors file",
    "liar.safetensors": r"liar\.safetensors is not a whole safetensors file",
    "text.safetensors": r"text\.safetensors is not a whole safetensors file",
    "deep.safetensors": r"deep\.safetensors is not a whole safetensors file",
    "nowhere.safetensors": r"no checkpoint at nowhere\.safetensors",
    "runs": r"the folder runs holds no checkpoint\.safetensors",
    "/dev/null": r"/dev/null",
    LONG: r"x{20}",
    "": r"''|checkpoint|zoo",
    "[/red]": r"\[/red\]",
    "nodigits-trades-95": r"nodigits-trades-95",
}
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
HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
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
OTHERS = {
    ("zoo", "show", "[red]"): r"\[red\]",
    ("zoo", "show", LONG): r"x{20}",
    ("zoo", "fetch", "../../etc/passwd", "--offline"): r"\.\./\.\./etc/passwd",
    ("zoo", "verify", "nothing"): r"nothing",
    ("zoo", "list", "--density", "many"): r"'many' is not a valid float",
    ("zoo", "export", "dense.safetensors", "--format", "dense", "--out", "/dev/null/x.safetensors"): r"/dev/null",
    ("zoo", "export", "dense.safetensors", "--format", "dense", "--out", LONG + ".safetensors"): r"file name too long",
    ("zoo", "export", "dense.safetensors", "--format", "state-dict", "--out", "/proc/x.pt"): r"/proc",
    ("zoo", "export", "dense.safetensors", "--format", "dense", "--out", "runs"): r"runs exists already",
    ("pipeline", "--config", "recipe.yml", "--dry-run", "--device", "gpu"): r"gpu",
    ("pipeline", "--config", "recipe.yml", "--out", LONG): r"file name too long",
    ("pipeline", "--config", "recipe.yml", "--out", "/dev/null/run"): r"/dev/null",
    ("train", "--config", LONG): r"file name too long",
    ("train", "--config", "/dev/zero"): r"no recipe '/dev/zero'|/dev/zero is a device",
    ("train", "--config", "runs"): r"no recipe 'runs'|runs is a folder",
    ("train", "--config", "binary"): r"binary is not UTF-8",
    ("train", "--config", "recipe.yml", "--out", LONG): r"file name too long",
    ("train", "--config", "recipe.yml", "--out", "/proc/self/run"): r"/proc/self/run: no such file or directory",
    ("train", "--config", "recipe.yml", "--save-minutes", "nan"): r"'nan' is no number of minutes",
    ("train", "--config", "recipe.yml", "--save-minutes", "inf"): r"Invalid value for '--save-minutes': inf",
    ("train", "--config", "recipe.yml", "--micro-batch", "0"): r"Invalid value for '--micro-batch': 0",
    ("train", "--config", "recipe.yml", "--precision", "float8"): r"float8",
    ("prune", "--config", "recipe.yml", "--ckpt", "dense.safetensors", "--density", "inf"): r"got inf",
    ("finetune", "--config", "recipe.yml", "--ckpt", "dense.safetensors", "--lwm", "--density", "nan"): r"got nan",
    ("--no-such-option",): r"No such option",
    (LONG,): r"No such command",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, write_recipe, write_checkpoint) -> Iterator[Path]:
    """A folder with a good recipe, a good checkpoint and a good run, and much that is bad."""
    folder = tmp_path_factory.mktemp("world")
    write_recipe(folder / "recipe.yml")
    write_checkpoint(folder / "dense.safetensors")
    for name, text in RECIPES.items():
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
    (folder / "binary").write_bytes(b"\xff\xfe\x00" * 9)
    (folder / "ids.txt").write_text("3\n500\n")
    (folder / "t.tsv").write_text(HEAD + "0\t1\t1\t0.1\t1\t0:00:01\n")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.safetensors").write_text("weights")
    (folder / "liar.safetensors").write_bytes(struct.pack("<Q", 10**12) + b"{}")
    (folder / "deep.safetensors").write_bytes(struct.pack("<Q", 5000) + b"[" * 5000)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run("attack", "--attack", "clean", "--ckpt", "dense.safetensors", "-n", 3, "--out", "runs/clean")
        assert done.exit_code == 0, done.output
        yield folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def answered(world, monkeypatch) -> Iterator[Callable[..., None]]:
    """Run one command that must end in one line that matches, soon, and leave no folder behind."""
    monkeypatch.chdir(world)

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"no answer in {SECONDS:g} seconds")

    usual = signal.signal(signal.SIGALRM, late)

    def check(message: str, *arguments: object) -> None:
        before = sorted(path.name for path in world.iterdir())
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            result = run(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code in (1, 2), result.output
        assert result.stdout == ""
        said = result.stderr.splitlines()
        error = said[-1]
        assert error.startswith("error: " if result.exit_code == 1 else "Error: "), result.stderr
        assert all(line.startswith("[1/") for line in said[:-1]) or result.exit_code == 2, result.stderr  # a pipeline's
        assert re.search(message, error), error
        assert len(error) < 6000
        assert sorted(path.name for path in world.iterdir()) == before

    yield check
    signal.signal(signal.SIGALRM, usual)


def cases(table: dict[Any, Any]) -> Any:
    """One test for each line of a table, called by its beginning."""
    names = [" ".join(map(str, key if isinstance(key, tuple) else [key]))[:60] or "nothing" for key in table]
    return pytest.mark.parametrize(("given", "message"), table.items(), ids=names)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_cannot_be_one(answered, name):
    answered(rf"{name}\.yml|{name}|nowhere\.yml|/dev/zero|x{{20}}", "train", "--config", f"{name}.yml", "--out", "run")


@cases(SETTINGS)
def test_a_setting_of_a_recipe(answered, given, message):
    answered(message, "train", "--config", "recipe.yml", "--set", given, "--out", "run")


@pytest.mark.parametrize("command", ["attack", "certify"])
@cases(EVALUATED)
def test_an_option_of_attack_and_certify(answered, command, given, message):
    out = () if "--out" in given else ("--out", "run")
    answered(message, command, "--ckpt", "dense.safetensors", *out, *given)


@cases(ATTACKED)
def test_an_option_of_attack(answered, given, message):
    answered(message, "attack", "--ckpt", "dense.safetensors", "--out", "run", *given)


@cases(SMOOTHED)
def test_an_option_of_smoothing(answered, given, message):
    answered(message, "certify", "--method", "smoothing", "--ckpt", "dense.safetensors", "--out", "run", *given)


@cases(BOUNDED)
def test_an_option_of_a_bound(answered, given, message):
    answered(message, "certify", "--ckpt", "dense.safetensors", "--out", "run", *given)


@pytest.mark.parametrize(
    "command",
    [
        ("attack", "--out", "run", "--ckpt"),
        ("certify", "--out", "run", "--ckpt"),
        ("prune", "--config", "recipe.yml", "--density", "0.1", "--out", "run", "--ckpt"),
        ("finetune", "--config", "recipe.yml", "--lwm", "--density", "0.1", "--out", "run", "--ckpt"),
        ("zoo", "export", "--format", "dense", "--out", "run.safetensors"),
    ],
    ids=lambda command: command[0],
)
@cases(CHECKPOINTS)
def test_a_file_that_is_no_checkpoint(answered, command, given, message):
    answered(message, *command, given)


@pytest.mark.parametrize("command", ["attack", "certify"])
def test_a_checkpoint_that_is_a_pipe_or_never_ends(answered, command):
    for name in ("pipe", "/dev/zero"):
        answered(name, command, "--ckpt", name, "--out", "run")


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


@cases(OTHERS)
def test_what_else_is_wrong(answered, given, message):
    answered(message, *given)


def copied(world: Path, folder: Path) -> Path:
    """A good run, to be damaged."""
    return Path(shutil.copytree(world / "runs" / "clean", folder / "bad"))
