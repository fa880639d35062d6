"""Default folders: one for each way of making a number and each choice of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from hydrabench.evaluators import (
    AlphaCrownSettings,
    AutoAttackSettings,
    CleanSettings,
    PgdSettings,
    SmoothingSettings,
    VerifiedSettings,
)
from hydrabench.workflows.evaluation.run_folders import default_folder, run_name

IBP = VerifiedSettings(kind="ibp", epsilon="8/255")
KINDS = ("ibp", "symbolic", "crown-ibp", "crown", "cascade")


def test_different_ways_of_making_a_number_have_different_default_folders():
    several = [CleanSettings(), AutoAttackSettings(epsilon="8/255"), AlphaCrownSettings(epsilon="8/255")]
    several += [VerifiedSettings(kind=kind, epsilon="8/255") for kind in KINDS]
    several += [PgdSettings(epsilon="4/255"), PgdSettings(epsilon="8/255"), PgdSettings(epsilon="8/255", norm="l2")]
    several += [SmoothingSettings(sigma=0.5), SmoothingSettings(sigma=0.25), SmoothingSettings(seed=1)]
    several += [SmoothingSettings(radii=(0.5,)), SmoothingSettings(radii=(0.25, 0.5))]
    several += [SmoothingSettings(rigor="discrete")]
    several += [SmoothingSettings(mode="adaptive"), SmoothingSettings(mode="adaptive", radii=(0.5,))]
    folders = [default_folder("zoo-entry", settings) for settings in several]
    assert len(set(folders)) == len(several)
    assert run_name(PgdSettings(epsilon="8/255")) == "pgd-50-v2-8_255"
    assert all(folder.parent == Path("runs/evaluations/zoo-entry") for folder in folders)


@pytest.mark.parametrize(
    ("precision", "chosen", "folder"),
    [
        ("float32", {}, "evaluations/zoo-entry/ibp-v1-8_255"),
        ("float64", {}, "evaluations/zoo-entry/ibp-v1-8_255-float64"),
        ("float32", {"n": 50}, "evaluations/zoo-entry/ibp-v1-8_255-n50"),
        ("float64", {"n": 50}, "evaluations/zoo-entry/ibp-v1-8_255-float64-n50"),
        ("float32", {"indices": (0,)}, "images/zoo-entry/ibp-v1-8_255-index0"),
        ("float32", {"indices": (17, 3, 17)}, "images/zoo-entry/ibp-v1-8_255-index3+17"),
    ],
)
def test_a_default_folder_names_the_precision_and_the_images_that_are_not_the_usual_ones(precision, chosen, folder):
    assert default_folder("zoo-entry", IBP, precision=precision, **chosen) == Path("runs") / folder


def test_many_indices_make_a_short_name_that_is_their_own():
    many = [tuple(range(100)), tuple(range(1, 101)), tuple(range(99))]
    names = [default_folder("zoo-entry", IBP, indices=indices).name for indices in many]
    assert [name.split("index")[1][:4] for name in names] == ["100x", "100x", "99x" + names[2][-8]]
    assert len(set(names)) == 3
    assert default_folder("zoo-entry", IBP, indices=many[0][::-1]).name == names[0]
    assert max(map(len, names)) < 40
