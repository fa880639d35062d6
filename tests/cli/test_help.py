"""What a newcomer sees first: help with examples, at once, and the version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import hydrabench
from hydrabench.cli import main
from hydrabench.cli.evaluators import evaluators_of

ROOT = Path(hydrabench.__file__).parents[1]
HEAVY = ("torch", "pydantic", "numpy", "scipy", "sklearn", "pandas", "rich")


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Every command and group below `group`, by the words that call it."""
    found: dict[tuple[str, ...], click.Command] = {path: group}
    for name, command in group.commands.items():
        below = all_commands(command, (*path, name)) if isinstance(command, click.Group) else {(*path, name): command}
        found |= below
    return found


COMMANDS = all_commands(main)


def test_the_commands_are_those_of_the_design():
    assert {words[0] for words in COMMANDS if len(words) == 1} == {
        "train", "prune", "finetune", "attack", "certify", "report", "gate", "baseline", "verify", "vnncomp",
        "pipeline", "zoo",
        "list",
        "completion",
    }  # fmt: skip
    assert {words[1] for words in COMMANDS if len(words) == 2} == {"list", "show", "fetch", "verify", "export"}


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_shows_an_example_that_names_the_command(words, flag):
    result = CliRunner().invoke(main, [*words, flag])
    assert (result.exit_code, result.stderr) == (0, "")
    _, heading, rest = result.stdout.partition("Example")
    assert heading
    examples = rest.partition("Options:")[0]
    assert " ".join(("hydrabench", *words)) in " ".join(examples.split())


@pytest.mark.parametrize("words", [words for words, c in COMMANDS.items() if not isinstance(c, click.Group)],
                         ids=" ".join)  # fmt: skip
def test_every_option_is_explained_and_every_example_uses_options_that_exist(words):
    command = COMMANDS[words]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert all(option.help for option in options)
    names = [name for option in options for name in option.opts]
    assert len(names) == len(set(names))
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)} | {"--nproc-per-node"}
    examples = (command.help or "").partition("Example")[2]
    used = {word for word in examples.split() if word.startswith("-") and word != "-m"}
    assert used <= known
    named = re.findall(r"--config (\S+)", examples)
    assert set(named) <= {file.stem for file in (ROOT / "configs").glob("*.yml")}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False, timeout=60
    )


def test_help_imports_nothing_heavy():
    probe = (
        "import sys; from hydrabench.cli import main; main(['--help'], standalone_mode=False); "
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = python("-c", probe)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Train, prune, attack, certify and compare" in done.stdout
    assert done.stdout.endswith("LOADED []\n")


@pytest.mark.parametrize("words", [("zoo", "list"), ("zoo", "show", "digits-trades")], ids=" ".join)
def test_what_stands_in_the_manifest_is_shown_without_torch(words):
    probe = f"import sys; from hydrabench.cli import main; main({list(words)}, standalone_mode=False); "
    done = python("-c", probe + "assert 'torch' not in sys.modules")
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits-trades" in done.stdout


def test_the_module_can_be_run_and_knows_its_version():
    done = python("-m", "hydrabench", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"version {hydrabench.__version__}\n")


def test_certify_lists_every_option_once_under_the_heading_of_its_method():
    text = CliRunner().invoke(main, ["certify", "--help"]).stdout.partition("\nOptions:")[2]
    shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
    options = [option for option in COMMANDS[("certify",)].params if isinstance(option, click.Option)]
    assert sorted(shown) == sorted([option.opts[-1] for option in options] + ["--help"])
    order = ["--ckpt", "\nBounds:", "--methods", "\nSmoothing:", "--sigma", "\nMachine:", "--device"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)


@pytest.mark.parametrize("words", [words for words, c in COMMANDS.items() if isinstance(c, click.Group)],
                         ids=" ".join)  # fmt: skip
def test_a_list_of_commands_holds_whole_sentences_on_a_terminal_of_80_columns(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(main, [*words, "--help"]).stdout.partition("Commands:\n")[2].splitlines()
    assert len(lines) == len(COMMANDS[words].commands)
    assert not [line for line in lines if not line.endswith(".") or line.endswith("...")]


def test_help_names_every_default_that_differs_between_attacks_or_methods():
    """The same option has several defaults; one of them was shown for all."""
    for command, choice in (("attack", "attack"), ("certify", "method")):
        text = " ".join(CliRunner().invoke(main, [command, "--help"]).stdout.split())
        for kind, evaluator in evaluators_of(choice).items():
            for option in evaluator.options:
                field = evaluator.settings.model_fields.get(option.setting or option.name)
                if option.kind != "int" or field is None or not isinstance(field.default, int):
                    continue
                shown = text.partition(f" {option.flag} INTEGER")[2].partition("[default: ")[2].partition("]")[0]
                said = dict(reversed(part.partition(": ")[::2]) for part in shown.split("; ")[1:])
                wanted = next(
                    (number for number, kinds in said.items() if kind in kinds.split(", ")), shown.split(";")[0]
                )
                assert wanted == str(field.default), (command, kind, option.name, shown)
