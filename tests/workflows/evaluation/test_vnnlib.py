"""certify --export-vnnlib: what an independent reader and onnxruntime make of the files."""

from __future__ import annotations

import csv
from fractions import Fraction

import pytest
import torch

from hydrabench.attacks import pgd
from hydrabench.bounds import crown_ibp_margins
from hydrabench.data import Choice, load_block, load_images
from hydrabench.errors import ConfigError, DataError, LedgerError
from hydrabench.evaluators import CleanSettings, SmoothingSettings, VerifiedSettings
from hydrabench.threat import linf_box
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.evaluation.vnnlib import export_vnnlib

runtime = pytest.importorskip("onnxruntime", reason="reads the exported networks")
pytest.importorskip("onnxscript", reason="exports them")

EPSILON = Fraction(8, 255)
SETTINGS = VerifiedSettings(kind="crown-ibp", epsilon="8/255")
N = 40


@pytest.fixture(scope="module")
def block():
    return load_block(load_images("digits", "test"), 0, tuple(range(N)))


@pytest.fixture(scope="module")
def exported(subject, cpu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vnn") / "digits"
    return folder, export_vnnlib(subject, SETTINGS, folder, options=cpu, among=Choice(N), timeout=12.5)


@pytest.fixture(scope="module")
def instances(exported, read_property):
    """Index of an image -> its property, by way of instances.csv."""
    folder, _ = exported
    with (folder / "instances.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    return {int(path.rpartition("-")[2][:-7]): read_property((folder / path).read_text()) for _, path, _ in rows}


@pytest.fixture(scope="module")
def run_onnx(exported):
    folder, _ = exported
    (path,) = (folder / "onnx").iterdir()
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def test_every_image_that_the_network_gets_right_has_an_instance(exported, subject, block):
    folder, export = exported
    right = subject.network(block.images).argmax(1) == block.labels
    assert list(export.written) == right.nonzero().flatten().tolist()
    assert list(export.left_out) == (~right).nonzero().flatten().tolist()
    assert 0 < len(export.left_out) < N
    with (folder / "instances.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(export.written) == len(list((folder / "vnnlib").iterdir()))
    for network, path, timeout in rows:
        assert (folder / network).is_file()
        assert (folder / path).is_file()
        assert timeout == "12.5"


def test_the_box_is_the_one_that_is_bounded_to_the_last_bit(instances, block):
    lower, upper = linf_box(block.images, float(EPSILON))
    for index, asserted in instances.items():
        assert asserted.lower == [Fraction(value) for value in lower[index].flatten().tolist()]
        assert asserted.upper == [Fraction(value) for value in upper[index].flatten().tolist()]


def test_points_of_the_box_fulfil_a_property_where_onnxruntime_sees_another_class(instances, run_onnx, block, subject):
    """Random corners of the boxes; the network in onnxruntime agrees with ours."""
    rng = torch.Generator().manual_seed(0)
    lower, upper = linf_box(block.images, float(EPSILON))
    seen = set()
    for _ in range(20):
        chosen = torch.rand(lower.shape, generator=rng) < 0.5
        points = torch.where(chosen, lower, upper)
        logits = run_onnx(points)
        torch.testing.assert_close(logits, subject.network(points), rtol=1e-4, atol=1e-4)
        for index, asserted in instances.items():
            violated = asserted.holds(points[index].flatten().tolist(), logits[index].tolist())
            assert violated == (logits[index].argmax() != block.labels[index])
            seen.add(violated)
    assert False in seen


def test_counterexamples_of_pgd_fulfil_their_properties_and_no_certified_one(instances, run_onnx, block, subject):
    lower, upper = linf_box(block.images, float(EPSILON))
    generator = torch.Generator().manual_seed(0)
    attacked = pgd(
        subject.network, block.images, block.labels, float(EPSILON), step_size=0.01, steps=40, generator=generator
    )
    attacked = attacked.maximum(lower).minimum(upper)
    logits = run_onnx(attacked)
    certified = crown_ibp_margins(subject.network, block.images, block.labels, float(EPSILON)) > 0
    fulfilled = {
        index: asserted.holds(attacked[index].flatten().tolist(), logits[index].tolist())
        for index, asserted in instances.items()
    }
    broken = (logits.argmax(1) != block.labels).tolist()
    assert any(fulfilled.values())
    assert not all(fulfilled.values())
    assert fulfilled == {index: broken[index] for index in instances}
    assert not any(fulfilled[index] and bool(certified[index]) for index in instances)


def test_float64_and_pruned_networks_are_written_as_they_are_in_float32(line, cpu, exported, tmp_path):
    """The same files from a subject in float64; masks are baked in, so that zeros stay zeros."""
    import onnx
    from onnx import numpy_helper

    folder, _ = exported
    double = open_subject(str(line.train), options=cpu, precision="float64")
    export_vnnlib(double, SETTINGS, tmp_path / "double", options=cpu, among=Choice(N), timeout=12.5)
    assert next(double.network.parameters()).dtype == torch.float64
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "double") for p in (tmp_path / "double").rglob("*") if p.is_file())
    assert all((folder / path).read_bytes() == (tmp_path / "double" / path).read_bytes() for path in files)
    pruned = open_subject(str(line.finetune), options=cpu)
    export_vnnlib(pruned, SETTINGS, tmp_path / "pruned", options=cpu, among=Choice(3))
    (path,) = (tmp_path / "pruned" / "onnx").iterdir()
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    assert min((weight != 0).mean() for weight in weights if weight.ndim > 1) < 0.2


@pytest.mark.parametrize("settings", [SmoothingSettings(), CleanSettings()], ids=lambda settings: settings.kind)
def test_what_bounds_no_box_is_refused(subject, cpu, tmp_path, settings):
    with pytest.raises(ConfigError, match=r"writes L∞ balls, .*@\d bounds none; choose another --method"):
        export_vnnlib(subject, settings, tmp_path / "out", options=cpu, among=Choice(3))
    assert not (tmp_path / "out").exists()


def test_another_norm_is_refused_with_what_to_leave_out(subject, cpu, tmp_path):
    settings = VerifiedSettings(kind="crown", norm="l2", epsilon="0.1")
    with pytest.raises(ConfigError, match=r"writes L∞ balls, crown@1 bounds none; leave out --norm l2$"):
        export_vnnlib(subject, settings, tmp_path / "out", options=cpu, among=Choice(3))


def test_folders_in_use_timeouts_of_zero_and_images_that_are_not_there_are_refused(subject, cpu, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "instances.csv").write_text("")
    with pytest.raises(LedgerError, match=r"used already holds something; choose a new folder for --export-vnnlib"):
        export_vnnlib(subject, SETTINGS, tmp_path / "used", options=cpu, among=Choice(3))
    with pytest.raises(ConfigError, match=r"--vnnlib-timeout is a number of seconds above 0, got 0"):
        export_vnnlib(subject, SETTINGS, tmp_path / "out", options=cpu, among=Choice(3), timeout=0)
    with pytest.raises(DataError, match=r"-n 501 is outside 1\.\.500"):
        export_vnnlib(subject, SETTINGS, tmp_path / "out", options=cpu, among=Choice(501))
    assert not (tmp_path / "out").exists()


def test_only_what_a_killed_writer_left_is_made_anew(subject, cpu, tmp_path):
    """Networks and properties of the user's own, which lie in folders of the same names, stay."""
    folder = tmp_path / "out"
    for name in ("onnx/a.onnx", "vnnlib/a-499.vnnlib", "vnnlib/.a-0.vnnlib.x.partial"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left")
    with pytest.raises(LedgerError, match=r"out already holds something"):
        export_vnnlib(subject, SETTINGS, folder, options=cpu, among=Choice(3))
    assert (folder / "onnx" / "a.onnx").read_text() == "left"
    (folder / ".writer.json").write_text("{}")
    written = export_vnnlib(subject, SETTINGS, folder, options=cpu, among=Choice(3)).written
    assert len(list(folder.glob("vnnlib/*"))) == len(written)
    assert len(list(folder.glob("onnx/*"))) == 1
    (folder / ".writer.json").write_text("{}")
    with pytest.raises(LedgerError, match=r"out already holds something"):
        export_vnnlib(subject, SETTINGS, folder, options=cpu, among=Choice(3))
