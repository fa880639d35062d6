"""README and docs/ say what is there: commands parse, links lead somewhere, Python blocks find their names."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

import hydrabench
import hydrabench.recipes
from hydrabench.cli import main
from hydrabench.cli.evaluators import require_options, settings_of
from hydrabench.evaluators import EVALUATORS

ROOT = Path(hydrabench.__file__).parents[1]
PAGES = sorted(
    [*(ROOT / "docs").glob("*.md"), ROOT / "configs" / "README.md", ROOT / "examples" / "extend" / "README.md"]
    + [path for name in ("README", "CHANGELOG", "CONTRIBUTING") if (path := ROOT / f"{name}.md").exists()]
)
COMMAND = re.compile(r"^\s*(?:\$ |- run: |srun )?(?:torchrun .*?-m )?(hydrabench (?!\().*)$", re.M)
INLINE = re.compile(r"`((?:torchrun [^`]*?-m )?hydrabench [a-z][^`]*)`")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


def commands(path: Path) -> list[str]:
    """Every `hydrabench ...` line of a page's blocks, and those within its sentences that are whole."""
    text = path.read_text()
    blocks = "".join(re.findall(r"^```\w*\n.*?^```$|^ {4}.*\n", text, re.S | re.M))
    inline = [line.partition("-m ")[2] or line for line in INLINE.findall(prose(text))]
    whole = [line for line in inline if len(line.split()) > 2 and not re.search(r"\||\.\.\.|\n", line)]
    return COMMAND.findall(blocks) + whole


LINES = [(name_of(path), line) for path in PAGES for line in dict.fromkeys(commands(path))]


def parsed(line: str) -> click.Context:
    """Parse a line as the command line does, without running it."""
    words, command, context = shlex.split(line, comments=True)[1:], main, None
    while isinstance(command, click.Group):
        if words[0].startswith("-"):
            return command.make_context("hydrabench", words, parent=context)
        context = click.Context(command, parent=context, **command.context_settings)
        name, command, words = command.resolve_command(context, words)
        assert command is not None, f"no command {name}"
    return command.make_context(command.name, words, parent=context)


@pytest.fixture
def any_path(monkeypatch):
    """Files that a line names need not be there, and plugins are not run: what they add would stay for other tests."""
    monkeypatch.setattr(hydrabench.recipes, "load_plugin", lambda _file: None)
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, _option, _context: value)


def test_pages_have_commands():
    assert len(LINES) > 60
    assert {name for name, _ in LINES} >= {"README.md", "docs/ci.md", "docs/attacks.md", "docs/clusters.md"}


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}: {line}"[:90] for page, line in LINES])
@pytest.mark.usefixtures("any_path")
def test_every_command_parses_and_names_what_exists(page, line):
    options = parsed(line).params
    if "--plugin" not in line:
        for choice in ("attack", "method"):
            kind = options.get(choice)
            assert kind in (None, *EVALUATORS), page
            if kind is not None:
                require_options(choice, kind, options)
                settings_of(kind, dict(options))
    recipe = options.get("config")
    if recipe and not recipe.endswith(".yml") and not recipe.isupper():
        assert (ROOT / "configs" / f"{recipe}.yml").is_file()
    for checkpoint in (options.get("ckpt"), options.get("ref")):
        if checkpoint and checkpoint.startswith("digits-") and "/" not in checkpoint and "." not in checkpoint:
            assert (ROOT / "zoo" / checkpoint).is_dir()


@pytest.mark.usefixtures("any_path")
def test_a_line_that_does_not_parse_is_noticed():
    for line in ("attack --ckpt a --norm l7", "attack --no-such-option", "nothing", "zoo nothing", "certify -n many"):
        with pytest.raises((click.UsageError, AssertionError)):
            parsed(f"hydrabench {line}")


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them of plain words."""
    headings = re.findall(r"^#{1,6} (.+)$", prose(path.read_text()), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_relative_link_resolves(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


PYTHON = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
BLOCKS = [(name_of(path), code) for path in PAGES for code in PYTHON.findall(path.read_text())]


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(BLOCKS)])
def test_python_blocks_compile_and_find_their_names(page, code):
    tree = ast.parse(code, page)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "hydrabench":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), page
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hb":
            assert hasattr(hydrabench, node.attr), node.attr


def test_the_site_shows_every_page_once_and_the_reference_names_what_exists():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    shown = re.findall(r"[\w-]+\.md", str(site["nav"]))
    assert sorted(shown) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    named = re.findall(r"^::: (\S+)\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert len(named) > 20
    for module, name in named:
        assert getattr(importlib.import_module(module), name).__doc__, name


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == hydrabench.__version__
    assert f"## {hydrabench.__version__}" in (ROOT / "CHANGELOG.md").read_text()
