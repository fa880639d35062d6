"""Settings read back from run.json."""

from __future__ import annotations

import pytest

from hydrabench.errors import ConfigError
from hydrabench.evaluators import (
    EVALUATORS,
    AutoAttackSettings,
    CleanSettings,
    PgdSettings,
    ReuseSettings,
    SmoothingSettings,
    VerifiedSettings,
    parse_settings,
    recorded_settings,
)

SETTINGS = [
    CleanSettings(),
    PgdSettings(epsilon="8/255", seed=3),
    AutoAttackSettings(epsilon="1/255"),
    VerifiedSettings(kind="cascade", epsilon="8/255", methods=("ibp", "crown")),
    SmoothingSettings(mode="adaptive", samples=500),
    ReuseSettings(reuse_samples=10, samples=100, radii=(0.0,)),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.protocol)
def test_settings_are_read_as_they_were_written(settings):
    assert recorded_settings(settings.plain(), settings.protocol) == settings


@pytest.mark.parametrize(
    "settings", [AutoAttackSettings(epsilon="1/255", version=1), PgdSettings(epsilon="1/255", version=1)]
)
def test_settings_of_ledgers_that_name_no_version_are_those_of_the_first(settings):
    values = {key: value for key, value in settings.plain().items() if key != "version"}
    assert recorded_settings(values, settings.protocol) == settings


@pytest.mark.parametrize("kind", EVALUATORS)
def test_settings_that_a_ledger_leaves_out_have_their_defaults(kind):
    """`hydrabench.run/1` left out many of them."""
    model = EVALUATORS[kind].settings
    given = {"kind": kind} | ({"epsilon": "8/255"} if "epsilon" in model.model_fields else {})
    settings = parse_settings(given)
    few = {key: value for key, value in settings.plain().items() if key in {*given, "version"}}
    assert recorded_settings(few, settings.protocol) == settings


@pytest.mark.parametrize("protocol", ["pgd-50@2", "pgd-20@1", "pgd-20@3", "pgd", "crown@1"])
def test_settings_of_another_protocol_than_the_id_says_are_refused(protocol):
    settings = PgdSettings(epsilon="8/255", steps=20)
    with pytest.raises(ConfigError, match=rf"run.json: settings make the protocol pgd-20@2, not {protocol}"):
        recorded_settings(settings.plain(), protocol, "run.json: settings")
