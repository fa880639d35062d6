"""What the shell completes, and which values are refused as bad usage."""

from __future__ import annotations

import pytest
from click.shell_completion import BashComplete

from hydrabench.cli import main
from hydrabench.cli.evaluators import evaluators_of


def completed(*words: str) -> list[tuple[str, str]]:
    """What is offered for the last of some words: type and value."""
    found = BashComplete(main, {}, "hydrabench", "_HYDRABENCH_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [(item.type, item.value) for item in found]


def names(*words: str) -> list[str]:
    return [value for kind, value in completed(*words) if kind == "plain"]


@pytest.mark.parametrize("command", ["attack", "certify", "prune", "finetune", "train", "verify"])
def test_checkpoints_are_ids_of_the_zoo_or_files(command):
    assert names(command, "--ckpt", "digits-trades-9") == ["digits-trades-90", "digits-trades-95", "digits-trades-99"]
    assert ("file", "digits-trades-9") in completed(command, "--ckpt", "digits-trades-9")


def test_recipes_are_those_that_come_with_hydrabench_or_files():
    assert names("train", "--config", "digits-") == ["digits-crown-ibp", "digits-trades"]
    assert ("file", "mine") in completed("pipeline", "--config", "mine")


def test_names_of_registries_are_completed():
    assert names("certify", "--method", "c") == ["cascade", "crown", "crown-ibp"]
    assert set(names("attack", "--attack", "")) == set(evaluators_of("attack"))
    assert {"cifar10", "cifar100"} <= set(names("attack", "--model", "m.py:build", "--dataset", "cifar"))
    assert {"l2", "linf"} <= set(names("attack", "--norm", ""))
    assert names("zoo", "show", "digits-trades-99") == ["digits-trades-99"]
    assert names("completion", "b") == ["bash"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_calls_the_program(hydrabench, shell):
    result = hydrabench("completion", shell)
    assert result.exit_code == 0
    assert f"_HYDRABENCH_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("attack", "--ckpt", "digits-trades-95", "--norm", "l3"),
        ("attack", "--ckpt", "digits-trades-95", "--precision", "float16"),
        ("certify", "--ckpt", "digits-trades-95", "--rigor", "great"),
        ("certify", "--ckpt", "digits-trades-95", "--engine", "mine"),
        ("train", "--config", "digits-trades", "--precision", "float64"),
        ("completion", "tcsh"),
    ],
    ids=" ".join,
)
def test_a_value_outside_a_closed_list_is_bad_usage(hydrabench, words):
    result = hydrabench(*words)
    assert result.exit_code == 2
    assert f"{words[-1]!r} is not one of " in result.stderr


def test_a_plugin_may_add_values(here, hydrabench):
    """Also if --plugin stands behind the option."""
    (here / "more.py").write_text("from hydrabench.cli.values import Name\nraise ValueError('read first')\n")
    result = hydrabench("attack", "--norm", "l3", "--plugin", "more.py")
    assert "ValueError: read first" in result.stderr
