"""The refusal of an operation without a rule names what has one, once, and every way on."""

from __future__ import annotations

from hydrabench.bounds.program.calls import refusal


def test_a_function_is_named_once_and_its_twin_in_place_is_left_out():
    functions = str(refusal("f.1", "Softshrink", "has no sound rule")).partition("the functions ")[2].partition(";")[0]
    names = functions.split(", ")
    assert {"add", "relu", "sum"} <= set(names)
    assert not [name for name in names if name.endswith("_") and name[:-1] in names]


def test_the_ways_on_are_other_layers_a_rule_of_ones_own_and_smoothing():
    text = str(refusal("f.1", "Softshrink", "has no sound rule"))
    assert text.startswith("cannot bound f.1 (Softshrink): it has no sound rule; ")
    assert all(way in text for way in ("build the network from these", "--plugin", "smoothing"))
