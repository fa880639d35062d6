"""Python files that add to the registries: what they may do, what is remembered of them, and what is refused."""

from __future__ import annotations

import hashlib
import logging

import pytest
import yaml

from hydrabench import plugins
from hydrabench.errors import ConfigError
from hydrabench.models import MODELS
from hydrabench.objectives import OBJECTIVES
from hydrabench.recipes import load_plugin, load_recipe
from hydrabench.recipes.registries import registries

LINEAR = """
from torch import nn
from hydrabench.models import MODELS, Architecture

def build(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

MODELS["linear"] = Architecture(build)
"""


def test_a_plugin_adds_to_the_registries_once_and_is_remembered_with_its_hash(write_plugin):
    path = write_plugin(LINEAR)
    assert plugins.loaded() == []
    load_plugin(path)
    entry = MODELS["linear"]
    load_plugin(path)
    assert MODELS["linear"] is entry
    assert plugins.loaded() == [{"file": "mine.py", "sha256": hashlib.sha256(LINEAR.encode()).hexdigest()}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", r"mine\.py, line 1: '\(' was never closed"),
        ("\n\nraise RuntimeError('oh\\nno')", r"mine\.py, line 3: RuntimeError: oh no$"),
        ("raise SystemExit(3)", r"mine\.py, line 1: SystemExit: 3$"),
        ("import nothing_of_this_name", r"mine\.py, line 1: ModuleNotFoundError: No module named 'nothing_of"),
        (
            "x = 1",
            r"mine\.py adds nothing; it can add an entry to the registry of each: objective, evaluator",
        ),
        (
            LINEAR.replace('"linear"', '"resnet18"'),
            r"mine\.py: the architecture 'resnet18' was there before; choose another name",
        ),
        (
            "from hydrabench.models import MODELS\ndel MODELS['resnet18']",
            r"the architecture 'resnet18' was there before; choose another name",
        ),
        (
            LINEAR.replace("Architecture(build)", "build"),
            r"architecture 'linear' is of type function; it must be of type Arch",
        ),
        (
            "from hydrabench.objectives import OBJECTIVES\nOBJECTIVES['mine'] = OBJECTIVES['natural']",
            r"""objective 'mine': its settings need the field `name: Literal\["mine"\]`""",
        ),
    ],
)
def test_a_plugin_that_goes_wrong_is_told_in_one_line_and_leaves_nothing_behind(write_plugin, text, message):
    before = [dict(registry.entries) for registry in registries()]
    with pytest.raises(ConfigError, match=message) as refused:
        load_plugin(write_plugin(text))
    assert "\n" not in str(refused.value)
    assert [dict(registry.entries) for registry in registries()] == before
    assert plugins.loaded() == []


def test_a_file_that_is_not_there_and_two_of_one_name_are_refused(write_plugin, tmp_path):
    with pytest.raises(ConfigError, match=r"no plugin '.*gone\.py' \(No such file.*\); --plugin takes a Python file"):
        load_plugin(tmp_path / "gone.py")
    load_plugin(write_plugin(LINEAR))
    with pytest.raises(ConfigError, match=r"another file of the name mine\.py is loaded already; rename one of them"):
        load_plugin(write_plugin(LINEAR.replace("linear", "other")))


def test_what_was_written_with_a_plugin_needs_it(write_plugin, caplog):
    wanted = [{"file": "mine.py", "sha256": "0" * 64}]
    with pytest.raises(ConfigError, match=r"runs/x needs plugin mine\.py \(sha256 000000000000…\): give --plugin mine"):
        plugins.require(wanted, "runs/x")
    load_plugin(write_plugin(LINEAR))
    with caplog.at_level(logging.WARNING):
        plugins.require(plugins.loaded(), "runs/y")
        assert not caplog.messages
        plugins.require(wanted, "runs/x")
    assert "runs/x was written with another version of plugin mine.py (sha256 000000000000…, now" in caplog.text


def test_a_recipe_names_its_plugins_and_adds_those_of_its_base(write_plugin, tmp_path):
    write_plugin(LINEAR, "net.py")
    objective = LINEAR.replace("MODELS", "OBJECTIVES").replace("hydrabench.models", "hydrabench.objectives")
    objective = objective.replace("Architecture(build)", "Objective(Mine, *rest)").replace("Architecture", "Objective")
    objective = (
        "from typing import Literal\nfrom hydrabench.objectives import ObjectiveSettings\n"
        'class Mine(ObjectiveSettings):\n    name: Literal["linear"]\n'
        "from hydrabench.objectives.natural import NATURAL\n"
        "rest = (NATURAL.loss, NATURAL.verdicts, NATURAL.metric, NATURAL.passes)\n" + objective
    )
    (tmp_path / "inner").mkdir()
    write_plugin(objective, "inner/loss.py")
    base = {"name": "base", "model": {"arch": "linear"}, "data": {"name": "digits"}, "plugins": ["net.py"]}
    base |= {"objective": {"name": "natural"}, "train": {"epochs": 1, "lr": 0.1}}
    (tmp_path / "base.yml").write_text(yaml.safe_dump(base))
    child = {"base": "../base.yml", "name": "child", "objective": {"name": "linear"}, "plugins": ["loss.py"]}
    (tmp_path / "inner" / "child.yml").write_text(yaml.safe_dump(child))
    recipe = load_recipe(tmp_path / "inner" / "child.yml")
    assert (recipe.model.arch, recipe.objective.name) == ("linear", "linear")
    assert [plugin["file"] for plugin in plugins.loaded()] == ["loss.py", "net.py"]
    assert "linear" in OBJECTIVES
    with pytest.raises(ConfigError, match=r"plugins: input should be a valid tuple|plugins: input should be"):
        load_recipe(tmp_path / "base.yml", ["plugins=3"])
