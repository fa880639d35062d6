"""A command that only refuses answers at once: nothing heavy is imported before the answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hydrabench
from hydrabench.checkpoints import checkpoint_name

ROOT = Path(hydrabench.__file__).parents[1]
HEAVY = ("torch", "torchvision", "sklearn", "scipy", "pandas", "numpy")
TRAIN = "train --config recipe.yml --out run"
PRUNE = "prune --config recipe.yml --density 0.1 --out run --ckpt"
ATTACK, CERTIFY = "attack --ckpt dense.safetensors --out run", "certify --ckpt dense.safetensors --out run"
COMMANDS = f"""
train --config nowhere.yml
train --config broken.yml
{TRAIN} --set train.lr=fast
{TRAIN} --set train.lr
{TRAIN} --set model.arch=resnet
{TRAIN} --set data.name=cifar11
{TRAIN} --set objective={{name:trades,epsilon:8}}
{TRAIN} --device gpu
{TRAIN} --precision float8
{TRAIN} --data-dir nowhere
{TRAIN} --ckpt nowhere.safetensors
{TRAIN} --model nowhere.py:build --dataset digits
train --config recipe.yml --out used
train --config recipe.yml --out broken.yml/run
train --config recipe.yml
finetune --config recipe.yml --ckpt dense.safetensors
pipeline --config recipe.yml --out used
pipeline --config recipe.yml
pipeline --config recipe.yml --set pipeline.densities=[2]
pipeline --config recipe.yml --out broken.yml/run
{PRUNE} nowhere.safetensors
{PRUNE} empty.safetensors
{PRUNE} no-such-entry
{PRUNE} dense.safetensors --density 99
finetune --config recipe.yml --ckpt text.safetensors --out run
{ATTACK} --epsilon 8
{ATTACK} --steps 0
{ATTACK} --norm l3
{ATTACK} -n 501
{ATTACK} --skip 0
{ATTACK} --ids nowhere.txt
{ATTACK} --attack pdg
{ATTACK} --device gpu
{ATTACK} --precision int8
{ATTACK} --sigma 0.25
attack --ckpt dense.safetensors --out used
attack --model nowhere.py:build --dataset digits
attack --model mynet.py:build --weights nowhere.pt --dataset digits
attack --model mynet.py:build --dataset digits --normalization none --out run
attack --model mynet.py:build --dataset digits --normalization none --out run --epsilon 8
attack --ckpt foreign.pt --arch cnn_small --dataset digits
attack --ckpt foreign.pt --arch cnn_small --dataset digits --steps 0 --epsilon 8/255
attack --ckpt dense.safetensors --epsilon 8/255
certify --ckpt dense.safetensors --method smoothing --sigma 0.25,0.5 --out several
certify --ckpt foreign.pt --method smoothing --sigma 0.25,0.5 --out several
{CERTIFY} --epsilon 8/255 --export-vnnlib used
attack
{CERTIFY} --method smoothing --sigma 64
{CERTIFY} --method smoothing --sigma 0.25 --index 500
{CERTIFY} --method smoothing --sigma 0.25 --reuse nowhere
{CERTIFY} --method cascade --methods ibp,crwon
{CERTIFY} --export-vnnlib v --vnnlib-timeout nan
zoo show nothing
zoo fetch nothing
zoo verify nothing
zoo list --density 0.123
zoo export nowhere.safetensors --format dense --out x
zoo export dense.safetensors --format prose --out x
zoo export dense.safetensors --format dense --out broken.yml/x
zoo export dense.safetensors --format hydra --out mynet.py
vnncomp instances.csv --out used
list prayers
""".strip().splitlines()
LACKING = [line for line in COMMANDS if line.endswith("digits --normalization none --out run")]
LACKING += ["attack --ckpt foreign.pt --arch cnn_small --dataset digits"]
TAKEN = [line for line in COMMANDS if line.endswith((" used", " several", " --out mynet.py", "dense.safetensors"))]
TAKEN += [
    "train --config recipe.yml",
    "pipeline --config recipe.yml",
    "attack --ckpt dense.safetensors --epsilon 8/255",
]
PROBE = """
import json, os, sys
from click.testing import CliRunner
import hydrabench.recipes, hydrabench.workflows.refusals  # once, not in every process
from hydrabench.cli import main
for line in sys.stdin.read().splitlines():
    if os.fork():
        os.wait()
        continue
    done = CliRunner().invoke(main, line.split())
    print(json.dumps([line, done.exit_code, done.stderr[-200:], sorted({HEAVY} & set(sys.modules))]), flush=True)
    os._exit(0)
"""


def test_nothing_heavy_is_imported_before_a_refusal(here, write_recipe, write_checkpoint):
    write_recipe(here / "recipe.yml")
    write_checkpoint(here / "dense.safetensors")
    (here / "broken.yml").write_text("name: [tiny")
    (here / "mynet.py").write_text("")
    (here / "empty.safetensors").write_bytes(b"")
    (here / "text.safetensors").write_text("weights")
    (here / "used").mkdir()
    (here / "used" / "thesis.tex").write_text("")
    (here / "used" / "results.csv").write_text("")
    (here / "foreign.pt").write_bytes(b"PK\x03\x04 as torch.save begins")
    name = checkpoint_name("dense.safetensors")
    for folder in ("tiny/train", "tiny/finetune/dense", f"evaluations/{name}/pgd-50-v2-8_255"):
        (here / "runs" / folder).mkdir(parents=True)
        (here / "runs" / folder / "notes.txt").write_text("")
    (here / "several" / "smoothing-cohen-v4-sigma0.5").mkdir(parents=True)
    (here / "several" / "smoothing-cohen-v4-sigma0.5" / "notes.txt").write_text("")
    probe, env = PROBE.replace("{HEAVY}", repr(set(HEAVY))), os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", probe],
        input="\n".join(COMMANDS),
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line, *_ in answers] == COMMANDS
    assert not [answer for answer in answers if answer[1] not in (1, 2)]
    assert not [answer for answer in answers if answer[3]]
    said = {line: text for line, _, text, _ in answers}
    assert all("add --epsilon" in text for line, text in said.items() if line in LACKING)
    assert all(re.search("holds|exists|is there", text) for line, text in said.items() if line in TAKEN), said
