"""Whatever is altered in stored adversarial images is found, and a run with such images is not gone on with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from hydrabench.cli import main
from hydrabench.errors import LedgerError
from hydrabench.evaluators import parse_settings
from hydrabench.files import sha256_of
from hydrabench.ledger import read_run
from hydrabench.reporting.evaluations import read_evaluation
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.verifying import verify_run
from tests.helpers.keeping import PGD, settings_of, stored


def seal(folder):
    """Write all hashes anew: what only judging the examples again can find."""
    path = folder / "adversarial" / "index.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["sha256"] = sha256_of(folder / "adversarial" / line["file"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((folder / "summary.json").read_text()) | {"adversarial_sha256": sha256_of(path)}
    (folder / "summary.json").write_text(json.dumps(summary))


def edit(folder, change, file="00000.safetensors"):
    path = folder / "adversarial" / file
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def swap(tensors):
    tensors["pixels"][[0, 1]] = tensors["pixels"][[1, 0]]


def outside(tensors):
    tensors["pixels"][0].flat[0] = min(tensors["pixels"][0].flat[0] + 0.2, 1.0)


def out_of_range(tensors):
    tensors["pixels"][0].flat[int(tensors["pixels"][0].argmax())] = 1.0001


def not_a_number(tensors):
    tensors["pixels"][0].flat[0] = np.nan


@pytest.mark.parametrize(
    ("change", "count", "said"),
    [
        (swap, 2, "from the image in L∞, its record says 0.125490196"),
        (outside, 1, "from the image in L∞, its record says 0.125490196"),
        (out_of_range, 1, "its stored adversarial image has pixels outside of [0, 1]"),
        (not_a_number, 1, "its stored adversarial image has pixels outside of [0, 1]"),
    ],
)
def test_verify_names_every_altered_example(copy, change, count, said):
    edit(copy, change)
    seal(copy)
    result = CliRunner().invoke(main, ["verify", str(copy), "--device", "cpu", "--sample", "3"])
    assert result.exit_code == 1
    strange = [text for text in result.stdout.splitlines() if "as recorded" not in text]
    assert [text.split(":")[0] for text in strange] == [f"image {n}" for n in list(stored(copy))[:count]]
    assert all(said in text for text in strange)
    total = len(stored(copy))
    assert f"error: {count} of {total} stored adversarial images are not what their records say" in result.stderr


def test_verify_finds_the_clean_image_in_place_of_an_example(copy, subject, cpu):
    images = subject.test_images(cpu)

    def change(tensors):
        tensors["pixels"][0] = images.take(torch.tensor(tensors["index"][:1])).float().numpy()[0] / 255

    edit(copy, change)
    seal(copy)
    found = verify_run(copy, options=cpu, sample=1)
    (one,) = found.differing
    assert one.index == next(iter(stored(copy)))
    assert "is classified as its label" in str(one)


def relist(folder, change):
    path = folder / "adversarial" / "index.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(text) + "\n" for text in lines))


def wrong_index(folder):
    """An example is said to be of an image that nothing broke, in the shard and on the list."""
    index = next(n for n in range(230) if n not in stored(folder))

    def on_list(lines):
        lines[0]["images"][0] = index

    edit(folder, lambda tensors: tensors["index"].__setitem__(0, index))
    relist(folder, on_list)


def test_verify_names_a_wrong_index_on_both_sides(copy, cpu):
    first = next(iter(stored(copy)))
    wrong_index(copy)
    seal(copy)
    found = verify_run(copy, options=cpu, sample=1).differing
    strange = next(iter(stored(copy)))
    assert {one.index: one.differences[0] for one in found} == {
        strange: "a stored adversarial image is there, but its record has none",
        first: "its record says broken, but no adversarial image of it is stored",
    }
    with pytest.raises(LedgerError, match=rf"has no example of image {first}, whose record says broken"):
        read_evaluation(read_run(copy))


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (
            lambda copy: edit(copy, outside),
            r"00000\.safetensors has SHA-256 .*: examples of images \d+ to",
        ),
        (lambda copy: (copy / "adversarial" / "00001.safetensors").unlink(), r"00001\.safetensors is missing"),
        (lambda copy: relist(copy, list.pop), r"index\.jsonl has SHA-256 .*, its summary\.json says"),
        (lambda copy: (copy / "adversarial" / "index.jsonl").write_text("x\n"), r"index\.jsonl has SHA-256"),
    ],
)
def test_an_edited_store_is_refused_by_resume_report_and_verify(copy, subject, cpu, alter, said):
    alter(copy)
    with pytest.raises(LedgerError, match=said):
        evaluate(subject, settings_of(PGD), copy, options=cpu, n=230, resume=True)
    with pytest.raises(LedgerError, match=said):
        read_evaluation(read_run(copy))
    with pytest.raises(LedgerError, match=said):
        verify_run(copy, options=cpu)


def test_an_unfinished_run_with_an_edited_store_is_not_gone_on_with(copy, subject, cpu):
    (copy / "summary.json").unlink()
    (copy / "run.json").write_text(json.dumps(json.loads((copy / "run.json").read_text()) | {"status": "running"}))
    edit(copy, outside)
    with pytest.raises(LedgerError, match=r"00000\.safetensors has SHA-256"):
        evaluate(subject, settings_of(PGD), copy, options=cpu, n=230, resume=True)


def test_what_is_kept_cannot_change_on_the_way(copy, subject, cpu):
    with pytest.raises(LedgerError, match='keep was "adversarial" and is now null'):
        evaluate(subject, parse_settings(PGD), copy, options=cpu, n=230, resume=True)
