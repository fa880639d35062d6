"""RobustBench's model_info files: read as published numbers; AutoAttack runs are written as such."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hydrabench.errors import LedgerError
from hydrabench.reporting.evaluations import EvaluatedNetwork, Evaluation, ImageSelection
from hydrabench.reporting.robustbench import model_infos, read_model_infos
from hydrabench.threat import Threat

ENTRY = {  # the shape of a published file, with numbers of nobody
    "link": "https://example.org/paper",
    "name": "A Title",
    "authors": "A. Author",
    "additional_data": True,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "Somewhere 2020",
    "architecture": "WideResNet-28-10",
    "eps": "8/255",
    "clean_acc": "88.98",
    "reported": "62.24",
    "autoattack_acc": "57.14",
}


def write(root: Path, place: str, **changes) -> Path:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in {**ENTRY, **changes}.items() if value != "absent"}))
    return path


def test_a_file_is_one_row_with_the_numbers_that_it_holds(tmp_path):
    path = write(tmp_path, "cifar10/Linf/Author2020Title.json", unreliable=True, footnote="Uses <b>more</b> images.")
    (row,) = read_model_infos(str(path)).rows
    assert (row.name, row.dataset, row.arch, row.additional_data) == (
        "Author2020Title",
        "cifar10",
        "WideResNet-28-10",
        True,
    )
    assert row.source == "https://example.org/paper"
    ball = Threat("linf", Fraction(8, 255))
    found = {(one.metric, one.protocol): (one.value, one.threat) for one in row.numbers}
    assert found == {
        ("clean_accuracy", "clean"): (0.8898, None),
        ("robust_accuracy", "AutoAttack"): (0.5714, ball),
        ("robust_accuracy", "reported by its authors"): (0.6224, ball),
    }
    assert row.notes == ("RobustBench flags its AutoAttack number as potentially unreliable.", "Uses more images.")


def test_a_folder_is_read_whole_and_what_has_no_threat_is_counted(tmp_path):
    write(tmp_path, "cifar10/L2/B.json", eps="0.5", external="50.00", autoattack_acc="51")
    write(tmp_path, "cifar10/corruptions/C.json", eps=None, corruptions_acc="90.1", autoattack_acc="absent")
    write(tmp_path, "imagenet/Linf/D.json", eps=None, dataset="absent")
    write(tmp_path, "Old.json")
    found = read_model_infos(str(tmp_path))
    rows = {row.name: row for row in found.rows}
    assert sorted(rows) == ["B", "C", "D"]
    assert {one.protocol: one.value for one in rows["B"].numbers if one.threat} == {
        "AutoAttack": 0.51, "best known attack": 0.5, "reported by its authors": 0.6224,
    }  # fmt: skip
    assert [(one.protocol, one.value) for one in rows["C"].numbers] == [("clean", 0.8898), ("corruptions", 0.901)]
    assert [one.metric for one in rows["D"].numbers] == ["clean_accuracy"], "a robust number needs its radius"
    assert rows["D"].dataset == "imagenet"
    assert list(found.skipped.values()) == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean_acc": "889.8"}, "clean_acc is '889.8', which should be a number of percent"),
        ({"autoattack_acc": "high"}, "autoattack_acc is 'high'"),
        ({"eps": "8"}, r"eps: epsilon '8' lies outside \[0, 1\]"),
        ({"clean_acc": "", "autoattack_acc": "absent", "reported": None}, "holds no accuracy"),
    ],
)
def test_a_file_with_a_number_that_is_none_is_refused_in_one_line(tmp_path, changes, message):
    path = write(tmp_path, "cifar10/Linf/A.json", **changes)
    with pytest.raises(LedgerError, match=message) as refusal:
        read_model_infos(str(path))
    assert str(path) in str(refusal.value)


def test_a_path_without_files_says_what_to_give(tmp_path):
    with pytest.raises(LedgerError, match=r"no \*\.json there; give a file DATASET/THREAT/NAME\.json"):
        read_model_infos(str(tmp_path))
    with pytest.raises(LedgerError, match="no file lies in a folder of its threat"):
        read_model_infos(str(write(tmp_path, "A.json")))


def attacked(name: str, norm: str = "linf", kind: str = "autoattack") -> Evaluation:
    """Four images: one wrong, one broken, two robust."""
    fields = {"index": [0, 1, 2, 3], "label": [1, 1, 1, 1], "prediction": [0, 1, 1, 1]}
    fields["robust"] = [False, False, True, True]
    arrays = {name: np.array(values) for name, values in fields.items()}
    network = EvaluatedNetwork(name, "0" * 64, "vgg16_bn", "trades", 0.1, 10, 1, 40)
    images, settings = ImageSelection("cifar10", "test", 4), {"kind": kind, "norm": norm, "epsilon": "8/255"}
    return Evaluation(Path(name), network, images, "float32", kind, "aa-standard@1", settings, arrays, {})


def test_an_autoattack_run_is_written_as_it_would_be_read(tmp_path):
    found = model_infos([attacked("runs/my net"), attacked("other", norm="l2"), attacked("clean", kind="pgd")])
    assert sorted(found) == ["cifar10/L2/other.json", "cifar10/Linf/runs-my-net.json"]
    info = found["cifar10/Linf/runs-my-net.json"]
    assert set(ENTRY) <= set(info)
    assert (info["clean_acc"], info["autoattack_acc"], info["eps"]) == ("75.00", "50.00", "8/255")
    assert info["footnote"] == "aa-standard@1 on cifar10 test, first 4 images, float32."
    path = tmp_path / "cifar10" / "Linf" / "net.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(info))
    (row,) = read_model_infos(str(path)).rows
    assert {one.protocol: one.value for one in row.numbers} == {
        "clean": 0.75, "AutoAttack": 0.5, "reported by its authors": 0.5,
    }  # fmt: skip


def test_without_autoattack_or_with_two_of_one_name_nothing_is_written():
    with pytest.raises(LedgerError, match="there is none"):
        model_infos([attacked("a", kind="pgd")])
    with pytest.raises(LedgerError, match=r"a second AutoAttack run of a would be cifar10/Linf/a\.json"):
        model_infos([attacked("a"), attacked("a")])
