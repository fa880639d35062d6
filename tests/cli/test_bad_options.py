"""Options of attack and certify that are wrong get one clear line, and leave nothing behind."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import nn

from hydrabench.bounds.program.convert import LAYERS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epsilon", "8"), r"epsilon: '8' lies outside \[0, 1\], .* if you mean 8 of 255 grey levels, write 8/255"),
        (("--epsilon", "-1/255"), r"epsilon: '-1/255' is not a radius: a radius is not negative; write .* 8/255"),
        (("--epsilon", "8/0"), r"epsilon: '8/0' is not a radius: write a fraction of the pixel range such as 8/255"),
        (("-n", "501"), r"-n 501 is outside 1\.\.500, the test images of digits"),
        (("-n", "0"), r"-n 0 is outside 1\.\.500"),
        (("--device", "gpu"), r"device 'gpu' is not available here; choose cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), r"device 'cuda:99' is not available here"),
        (("--device", "meta"), r"device 'meta' is not available here"),
        (("--data-dir", "nowhere"), r"data folder 'nowhere' does not exist; correct --data-dir or HYDRABENCH_DATA"),
    ],
)  # fmt: skip
def test_options_that_attack_and_certify_share_are_checked(refused, dense, options, message):
    for command in ("attack", "certify"):
        refused(message, command, "--ckpt", dense, "--out", "run", *options)
        refused(message, command, "--ckpt", dense, *options)  # into the default folder


@pytest.mark.parametrize(
    ("command", "option", "value", "allowed"),
    [
        ("attack", "--precision", "float16", "'float32', 'float64', 'bfloat16', 'mixed'"),
        ("attack", "--norm", "lx", "'linf', 'l2', 'l1'"),
        ("certify", "--precision", "float16", "'float32', 'float64', 'bfloat16', 'mixed'"),
        ("certify", "--engine", "lirpa", "'hydrabench', 'auto_lirpa', 'milp', 'branch-and-bound'"),
        ("certify", "--slopes", "some", "'output', 'all'"),
        ("certify", "--mode", "fast", "'cohen', 'adaptive', 'predict'"),
        ("certify", "--rigor", "exact", "'standard', 'sound', 'deployed', 'discrete'"),
    ],
)
def test_a_value_that_is_none_of_a_closed_list_is_a_usage_error(hydrabench, dense, command, option, value, allowed):
    result = hydrabench(command, "--ckpt", dense, "--out", "run", option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': '{value}' is not one of {allowed}." in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("attack", "--attack", "pdg"), r"'pdg'; did you mean 'pgd'\? choose one of: apgd, autoattack, clean"),
        (
            ("attack", "--norm", "l2"),
            r"does not say which radius it was trained for in this norm; add --epsilon",
        ),
        (("attack", "--steps", "0"), r"steps: input should be greater than 0 \(got 0\)"),
        (
            ("attack", "--attack", "autoattack", "--restarts", "2"),
            r"--restarts is for --attack pgd; with autoattack",
        ),
        (("attack", "--seed", "-1"), r"seed: input should be greater than or equal to 0 \(got -1\)"),
        (
            ("certify", "--method", "crown-ipb"),
            r"'crown-ipb'; did you mean 'crown-ibp'\? choose one of: alpha-crown, cascade, crown, crown-ibp, exact",
        ),
        (
            ("certify", "--method", "ibp", "--sigma", "0.25"),
            r"--sigma is for --method smoothing; with ibp leave it out",
        ),
        (
            ("certify", "--method", "crown", "--rigor", "sound"),
            r"crown: .*rigor: sound is for ibp and crown-ibp in linf, .*; got crown in linf, by hydrabench; change",
        ),
        (("certify", "--method", "ibp", "--rigor", "discrete"), r"ibp: rigor: .*'sound' or 'deployed'.*'discrete'"),
        (
            ("certify", "--method", "ibp", "--time-limit", "3"),
            r"--time-limit is for --method cascade, alpha-crown, exact; with ibp",
        ),
        (
            ("certify", "--method", "ibp", "--methods", "ibp,crown-ibp,crown"),
            r"--methods is for --method cascade; with ibp leave it out",
        ),
        (
            ("certify", "--method", "cascade", "--methods", "foo"),
            r"cascade: methods\.0: input should be [^;]*\(got 'foo'\)$",
        ),
        (
            ("certify", "--method", "cascade", "--methods", "ibp, ibp"),
            r"cascade: methods: names one twice, got ibp,ibp;",
        ),
        (
            ("certify", "--method", "cascade", "--methods", "alpha-crown,crown"),
            r"methods: alpha-crown, by far the slowest, comes last .*, got alpha-crown,crown; write for example ibp,",
        ),
        (
            ("certify", "--method", "alpha-crown", "--engine", "auto_lirpa", "--norm", "l2", "--epsilon", "1"),
            r"engine: auto_lirpa bounds linf balls, got l2; leave the engine at hydrabench",
        ),
        (
            ("certify", "--method", "cascade", "--iterations", "5"),
            r"iterations: is an option of alpha-crown, which is none of methods ibp,crown-ibp,crown; add it",
        ),
        (
            ("certify", "--method", "cascade", "--methods", "ibp,alpha-crown", "--precision", "bfloat16"),
            r"--precision bfloat16 is for smoothing only",
        ),
        (("certify", "--method", "alpha-crown", "--time-limit", "inf"), r"time_limit: input should be a finite number"),
        (
            ("certify", "--method", "symbolic", "--engine", "auto_lirpa"),
            r"--engine is for --method ibp, crown-ibp, crown, cascade, alpha-crown, exact; with symbolic leave it out",
        ),
        (("certify", "--method", "alpha-crown", "--iterations", "0"), r"iterations: input should be greater than 0"),
        (("certify", "--vnnlib-timeout", "10"), r"--vnnlib-timeout says something about .* --export-vnnlib; give that"),
        (("certify", "--export-vnnlib", "v", "--vnnlib-timeout", "-1"), r"seconds above 0, got -1"),
        (("certify", "--method", "smoothing", "--export-vnnlib", "v"), r"smoothing-cohen@4 bounds none"),
        (
            ("certify", "--method", "smoothing", "--epsilon", "8/255"),
            r"--epsilon is for --method ibp.* with smoothing leave",
        ),
        (("certify", "--method", "smoothing", "--radii", "0,inf"), r"radii\.1: input should be a finite number"),
        (("certify", "--method", "smoothing", "--sigma", "inf"), r"sigma: input should be a finite number"),
        (("certify", "--method", "smoothing", "--radii", "0,0"), r"radii: ascend and differ, got 0, 0; sort them"),
        (
            ("certify", "--method", "smoothing", "--sigma", "0.1, 0.10"),
            r"--sigma 0.1, 0.10 names one value twice",
        ),
        (
            ("certify", "--norm", "l2"),
            r"does not say which radius it was trained for in this norm; add --epsilon, for example 0\.25",
        ),
        (("certify", "--method", "smoothing", "--sigma", "-1"), r"sigma: input should be greater than 0 \(got '-1'\)"),
        (("certify", "--method", "smoothing", "--alpha", "1"), r"alpha: input should be less than 1 \(got 1\.0\)"),
        (("certify", "--method", "smoothing", "--radii", "0,far"), r"radii\.1: .*valid number.*'far'"),
        (("certify", "--method", "smoothing", "--sigma", "0.1,x"), r"sigma: .*valid number.*'x'"),
        (("certify", "--method", "smoothing", "--label-aware"), r"label_aware needs mode adaptive"),
        (
            ("certify", "--method", "smoothing", "--predict", "--radii", "0"),
            r"--predict certifies no radius, so --radii",
        ),
        (
            ("certify", "--method", "smoothing", "--noise", "gpu"),
            r"unknown noise source 'gpu'; did you mean 'cpu'",
        ),
        (("certify", "--method", "smoothing", "--batch", "0"), r"--batch 0 is no number of images; give 1 or more"),
        (("certify", "--method", "smoothing", "--index", "3,-1"), r"--index '-1' is no position of a test image"),
        (
            ("certify", "--method", "ibp", "--channels-last"),
            r"--channels-last is for --method smoothing; with ibp leave",
        ),
        (("certify", "--method", "ibp", "--precision", "bfloat16"), r"--precision bfloat16 is for smoothing only"),
        (
            ("attack", "--attack", "square", "--precision", "mixed"),
            r"--precision mixed computes the gradients .* in bfloat16, and is for pgd, autoattack; with square",
        ),
        (
            ("certify", "--method", "ibp", "--precision", "mixed"),
            r"is for pgd, autoattack; with ibp choose one of: float",
        ),
    ],
)
def test_options_of_one_method_are_checked(refused, dense, options, message):
    refused(message, *options, "--ckpt", dense, "--out", "run")


def write_cifar(folder: Path, count: int) -> None:
    """Random images as a Parquet file in the Hugging Face layout."""
    rng, encoded = np.random.default_rng(0), []
    for _ in range(count):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    folder.mkdir()
    pq.write_table(pa.table({"img": encoded, "label": list(range(count))}), folder / "test-00000-of-00001.parquet")


def test_an_operation_without_a_rule_is_named_but_can_be_attacked_and_smoothed(
    refused, hydrabench, here, write_checkpoint, monkeypatch
):
    monkeypatch.delitem(LAYERS, nn.MaxPool2d)  # every architecture has rules for all its layers
    write_cifar(here / "data", 2)
    vgg = write_checkpoint(here / "vgg.safetensors", arch="vgg16_bn", dataset="cifar10")
    given = ("--ckpt", vgg, "--data-dir", "data", "-n", 1)
    for method in ("ibp", "crown-ibp"):
        message = r"cannot bound features\.6 \(MaxPool2d\): it has no sound rule; .* certify it with smoothing"
        refused(message, "certify", *given, "--method", method, "--out", "run")
    few = ("--method", "smoothing", "--n0", 2, "--samples", 4)
    assert hydrabench("certify", *given, *few, "--out", "smoothed").exit_code == 0
    assert hydrabench("attack", *given, "--steps", 1, "--out", "attacked").exit_code == 0
    refused(r"-n 3 is outside 1\.\.2, the test images of cifar10", "attack", *given[:-1], 3, "--out", "run")
