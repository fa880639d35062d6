"""`hydrabench vnncomp`: answers like those of `exact`, one row an instance, whatever the instance."""

from __future__ import annotations

import csv
import gzip
import re

import numpy as np
import pytest
from click.testing import CliRunner

from hydrabench.bounds.properties import read_property
from hydrabench.checkpoints import open_ref
from hydrabench.cli import main
from hydrabench.data import load_block, load_images
from hydrabench.evaluators import ExactSettings
from hydrabench.evaluators.decided import evaluate_exact

onnxruntime = pytest.importorskip("onnxruntime")
CKPT, EPSILON, IMAGES = "digits-trades-99", "16/255", (0, 3, 96, 130, 158)


def invoke(*words):
    return CliRunner().invoke(main, [*map(str, words)])


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Our own export of a few images, at the radius of `exact`."""
    folder = tmp_path_factory.mktemp("exported")
    words = ("--ckpt", CKPT, "--method", "ibp", "--epsilon", EPSILON, "--index", ",".join(map(str, IMAGES)))
    done = invoke("certify", *words, "--out", folder / "run", "--export-vnnlib", folder / "vnn")
    assert done.exit_code == 0, done.output
    return folder / "vnn"


def rows_of(folder):
    return list(csv.reader((folder / "results.csv").read_text().splitlines()))


def test_our_own_instances_get_the_verdicts_of_exact_and_counterexamples_replay(benchmark, tmp_path):
    done = invoke("vnncomp", benchmark / "instances.csv", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    rows = rows_of(tmp_path / "out")
    block = load_block(load_images("digits", "test"), 0, IMAGES)
    records = evaluate_exact(open_ref(CKPT).baked().eval(), block, ExactSettings(epsilon=EPSILON))
    verdicts = {record.index: record.verdict for record in records if record.found_by != "clean"}
    answers = {"verified": "holds", "broken": "violated"}
    indices = [int(re.search(r"-(\d+)\.vnnlib", row[2])[1]) for row in rows]
    assert indices == list(verdicts)
    assert [row[4] for row in rows] == [answers[verdicts[index]] for index in indices]
    assert {row[4] for row in rows} == {"holds", "violated"}
    session = onnxruntime.InferenceSession(str(benchmark / rows[0][1]), providers=["CPUExecutionProvider"])
    for number, row in enumerate(rows):
        answer, _, witness = (
            (tmp_path / "out" / "results" / f"{number:05d}-{row[2][7:]}.txt").read_text().partition("\n")
        )
        assert answer == row[4]
        values = [float(value) for value in re.findall(r"\([XY]_\d+ ([^\s()]+)\)", witness)]
        if answer == "holds":
            assert not values
            continue
        x, y = np.array(values[:64]), np.array(values[64:])
        cases = read_property((benchmark / row[2]).read_text())
        assert (cases[0].lower.numpy() <= x).all()
        assert (x <= cases[0].upper.numpy()).all()
        (found,) = session.run(None, {"images": x.astype(np.float32).reshape(1, 1, 8, 8)})
        assert np.abs(found - y).max() < 1e-5
        assert any((case.rows.numpy() @ y <= case.bounds.numpy()).all() for case in cases)


def test_a_bad_instance_is_one_line_and_the_next_one_follows(benchmark, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    onnx, vnnlib, _ = next(csv.reader((benchmark / "instances.csv").read_text().splitlines()))
    (folder / "net.onnx.gz").write_bytes(gzip.compress((benchmark / onnx).read_bytes()))
    (folder / "fine.vnnlib.gz").write_bytes(gzip.compress((benchmark / vnnlib).read_bytes()))
    (folder / "bad.vnnlib").write_text("(assert (<= X_0 Y_0)")
    (folder / "torn.vnnlib.gz").write_bytes(b"no archive")
    (folder / "few.vnnlib").write_text(
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= Y_0 0))"
    )
    names = ["bad.vnnlib", "torn.vnnlib", "missing.vnnlib", "few.vnnlib", "fine.vnnlib"]
    (folder / "instances.csv").write_text("".join(f"net.onnx,{name},60\n" for name in names))
    out = tmp_path / "out"
    done = invoke("vnncomp", folder / "instances.csv", "--out", out)
    assert done.exit_code == 0
    assert [row[4] for row in rows_of(out)] == ["error"] * 4 + ["holds"]
    assert "a parenthesis is not closed" in done.stderr
    assert "missing.vnnlib: there is no such file" in done.stderr
    assert "has 1 outputs" in done.stderr
    again = invoke("vnncomp", folder / "instances.csv", "--out", out)
    assert (again.exit_code, "add --resume" in again.stderr) == (1, True)
    before = (out / "results.csv").read_text().splitlines()
    (out / "results.csv").write_text("\n".join(before[:4]) + "\n")
    assert invoke("vnncomp", folder / "instances.csv", "--out", out, "--resume").exit_code == 0
    assert (out / "results.csv").read_text().splitlines()[:4] == before[:4]
    assert rows_of(out)[4][4] == "holds"


def test_an_instance_stops_at_its_time_limit(benchmark, tmp_path):
    done = invoke("vnncomp", benchmark / "instances.csv", "--out", tmp_path, "--timeout", "1e-9", "--json")
    assert done.exit_code == 0
    rows = rows_of(tmp_path)
    assert {row[4] for row in rows} <= {"timeout", "holds", "violated"}  # what the first bound decides is an answer
    assert all(float(row[5]) < 2 for row in rows)


def test_what_is_no_benchmark_is_refused(tmp_path):
    (tmp_path / "i.csv").write_text("net.onnx,prop.vnnlib\n")
    wrong = invoke("vnncomp", tmp_path / "i.csv", "--out", tmp_path / "out")
    assert "line 1: is not NETWORK.onnx,PROPERTY.vnnlib,SECONDS" in wrong.stderr
    (tmp_path / "i.csv").write_bytes(b"\xff\xfenet.onnx,prop.vnnlib,3\n")
    wrong = invoke("vnncomp", tmp_path / "i.csv", "--out", tmp_path / "out")
    assert "is not UTF-8 text" in wrong.stderr
    assert "there is no such file" in invoke("vnncomp", tmp_path / "j.csv", "--out", tmp_path / "out").stderr
    (tmp_path / "i.csv").write_text("net.onnx,prop.vnnlib,60\n")
    bad = invoke("vnncomp", tmp_path / "i.csv", "--out", tmp_path / "out", "--timeout", "0")
    assert "--timeout is a number of seconds above 0, got 0" in bad.stderr
