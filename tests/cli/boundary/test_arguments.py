"""Bad input of every kind, to every command: one line that names the value, exit code 1 or 2, in bounded time.

Each line of a table is one command. Nothing here may print a traceback, hang, or leave a run folder behind.
"""

from __future__ import annotations

import pytest

from tests.helpers.boundaries import DIGITS, LONG, RECIPES, cases

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
    "objective={name: trades, epsilon: 1e300}": r"epsilon: '1e300' is not a radius",
    "objective={name: trades, epsilon: [8, 255]}": r"objective\.epsilon: is a radius in pixel units.*\[8, 255\]",
    "objective={name: stability, sigma: 64}": r"sigma: '64' lies outside .* write 64/255",
    "objective={name: free, epsilon: 0.1, repeats: 1e12}": r"repeats: ",
    "[=1": r"unknown key|--set '\[=1'",
    "train=[1]": r"train: expected keys and values \(got \[1\]\)",
    "train.lr={": r"--set 'train\.lr=\{' is not YAML",
    "=": r"--set '=': write KEY=VALUE",
    "train.lr=" + "[" * 3000: r"nested more than 50 deep",
}
EVALUATED = {  # by both attack and certify
    ("--epsilon", "inf"): r"epsilon: 'inf' is not a radius",
    ("--epsilon", "nan"): r"epsilon: 'nan' is not a radius",
    ("--epsilon", "1e400"): r"epsilon: '1e400' is not a radius",
    ("--epsilon", DIGITS): r"epsilon: '9+…9+' is not a radius",
    ("--epsilon", "8/255/1"): r"epsilon: '8/255/1' is not a radius",
    ("--epsilon", "٨/٢٥٥"): r"epsilon: '٨/٢٥٥' is not a radius",
    ("--norm", "l2", "--epsilon", "64"): r"epsilon: '64' lies outside .* write 64/255",
    ("--norm", "l3"): r"'--norm': 'l3' is not one of 'linf', 'l2'",
    ("--epsilon", "[red]"): r"epsilon: '\[red\]' is not a radius",
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
    ("--sigma", "64"): r"sigma: '64' lies outside \(0, 10\], .* write 64/255",
    ("--sigma", "1e300"): r"sigma: '1e300' is no noise level|sigma: .*1e300|sigma '1e300' lies",
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


@cases(OTHERS)
def test_what_else_is_wrong(answered, given, message):
    answered(message, *given)
