"""The shape of the house: imports point down the rows of style.md section 1, modules and functions stay small."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import hydrabench

PACKAGE = Path(hydrabench.__file__).parent
ROOT = Path(__file__).parents[1]
SHIPPED = ("hydrabench", "configs", "docs", "benchmarks", "tools", "examples")
ROWS = [
    {"__main__"},
    {"cli"},
    {"api"},
    {"workflows"},
    {"recipes", "reporting"},
    {"objectives", "evaluators"},
    {"attacks", "bounds", "smoothing"},
    {"checkpoints"},
    {"models", "data"},
    {"masking"},
    {"config", "ledger"},
    {"plugins"},
    {"laws", "threat", "runtime", "documents", "selection", "files", "process"},
    {"errors"},
    {"__init__"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
MODULES = sorted(PACKAGE.rglob("*.py"))
CONTENTS = PACKAGE / "__init__.py"  # names what is above it for type checkers only, see tests/api/test_public.py


def internal_imports(path: Path) -> set[str]:
    """First-level names under `hydrabench` that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "hydrabench":
                inner = rest[0] if rest else "__init__"
                found.add(inner if inner in RANK else "__init__")
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path != CONTENTS], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_down(path):
    here = room(path)
    for there in internal_imports(path) - {here}:
        assert RANK[there] > RANK[here], f"{here} must not import {there}; see section 1 of style.md"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 320, "split this module"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"split {node.name}"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name == "__init__.py"], ids=lambda path: str(path.parent.name)
)
def test_a_package_file_is_a_table_of_contents(path):
    """`cli` lists the commands, some packages import names when they are first used; other code is in modules."""
    defined = [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in ("main", "__getattr__", "__dir__")
    ]
    assert not defined


def test_reporting_knows_nothing_of_torch():
    for path in MODULES:
        if room(path) in {"reporting", "ledger", "threat", "files"} or path.stem in {
            "confidence",
            "sequential",
            "boundaries",
            "rules",
            "discrete",
        }:
            tops = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not any("torch" in ast.unparse(node) or "runtime" in ast.unparse(node) for node in tops), path


READS_OWN_FILES = {"page", "download", "writer", "files"}  # what hydrabench itself wrote, or ships


def test_files_of_the_users_are_read_by_documents():
    """`documents` refuses what is too large, no regular file or no text, each in one line."""
    for path in MODULES:
        found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        direct = [ast.unparse(node) for node in found if ast.unparse(node.func).endswith(".read_text")]
        assert not direct or path.stem in READS_OWN_FILES, (path, direct)


MORE_THAN_ONCE = {
    "Result": "a type variable",
    "IBP": "the objective and the evaluator of one method, each for its own registry",
    "CROWN_IBP": "as IBP",
    "PGD": "as IBP",
    "Run": "what the Python interface returns; in bounds, neighbouring images",
}


def defined_names(path: Path) -> set[str]:
    """Public classes of a module, and outside bounds its types and constants; several rooms may share a verb."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name) and room(path) != "bounds"}
        found |= {node.name} if isinstance(node, ast.ClassDef) else set()
    return {name for name in found if not name.startswith("_")}


def test_a_name_means_one_thing_in_the_whole_package():
    homes = defaultdict(list)
    for path in MODULES:
        for name in defined_names(path):
            homes[name].append(str(path.relative_to(PACKAGE)))
    assert homes["Evaluator"] == ["evaluators/description.py"]
    assert not {name: places for name, places in homes.items() if len(places) > 1 and name not in MORE_THAN_ONCE}


def test_sources_are_papers_and_code_that_a_reader_can_find():
    """The developers' notes on the field are not part of the project."""
    texts = [path for kind in ("*.py", "*.md", "*.yml") for place in SHIPPED for path in (ROOT / place).rglob(kind)]
    assert len(texts) > 200
    assert not [path.name for path in texts if re.search(r"reference/|\bfield\.md|hydra\.md", path.read_text("utf-8"))]
