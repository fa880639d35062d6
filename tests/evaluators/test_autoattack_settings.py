"""The attacks of AutoAttack that run, their order, the protocol id, and the passes that they take."""

from __future__ import annotations

import pytest

from hydrabench.evaluators import AutoAttackSettings
from hydrabench.evaluators.autoattack_settings import fitted_to_classes


@pytest.mark.parametrize(
    ("classes", "ensemble", "protocol"),
    [
        (4, "standard", "aa-standard@2"),
        (3, "standard", "aa-apgd-ce+fab-t+square@2"),
        (2, "standard", "aa-apgd-ce+fab-t+square@2"),
        (3, "plus", "aa-plus-apgd-ce+apgd-dlr+fab+square+fab-t@2"),
        (2, "plus", "aa-plus-apgd-ce+fab+square+fab-t@2"),
        (3, "rand", "aa-rand@2"),
        (2, "rand", "aa-rand-apgd-ce@2"),
    ],
)
def test_few_classes_get_the_attacks_that_are_defined_and_the_protocol_says_so(classes, ensemble, protocol):
    settings = fitted_to_classes(AutoAttackSettings(epsilon="0.1", ensemble=ensemble), classes)
    assert settings.protocol == protocol


@pytest.mark.parametrize(
    ("values", "protocol"),
    [
        ({}, "aa-standard@2"),
        ({"seed": 3}, "aa-standard-s3@2"),
        ({"version": 1}, "aa-standard@1"),
        ({"ensemble": "plus"}, "aa-plus@2"),
        ({"attacks": ["square", "apgd-ce"]}, "aa-square+apgd-ce@2"),
        ({"cascade": True}, "aa-standard-cascade@2"),
        ({"norm": "l1"}, "aa-standard-l1@2"),
        ({"mixed": True}, "aa-standard-mixed@2"),
        ({"norm": "l1", "attacks": ["square"], "seed": 2}, "aa-square-l1-s2@2"),
        ({"cascade": True, "attacks": ["square", "apgd-ce"], "seed": 1}, "aa-square+apgd-ce-cascade-s1@2"),
    ],
)
def test_the_protocol_spells_out_what_is_not_standard(values, protocol):
    assert AutoAttackSettings(epsilon="0.1", **values).protocol == protocol


@pytest.mark.parametrize(
    ("values", "order"),
    [
        ({"ensemble": "plus"}, ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")),
        ({"ensemble": "rand"}, ("apgd-ce", "apgd-dlr")),
        ({"cascade": True}, ("pgd-10", "apgd-ce", "apgd-t", "fab-t", "square")),
        ({"cascade": True, "attacks": ("square", "apgd-ce")}, ("pgd-10", "apgd-ce", "square")),
    ],
)
def test_attacks_run_in_upstreams_order_or_as_they_were_named(values, order):
    assert AutoAttackSettings(epsilon="0.1", **values).order == order


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"attacks": ["square", "square"]}, "names one attack twice"),
        ({"ensemble": "rand", "attacks": ["square"]}, "square averages no gradients; with ensemble: rand choose among"),
        ({"ensemble": "rand", "cascade": True}, "leave it out with ensemble: rand"),
        ({"version": 1, "cascade": True}, "version: 1 of the protocol is the standard ensemble alone"),
        ({"version": 1, "norm": "l1"}, "version: 1 of the protocol is the standard ensemble alone"),
        ({"norm": "l1", "ensemble": "plus"}, "l1 is none that the authors made plus for"),
        ({"mixed": True, "attacks": ["square"]}, "mixed: changes gradients, which square does not follow"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        AutoAttackSettings(epsilon="0.1", **values)
