"""A wheel that is installed elsewhere finds its code, recipes and checkpoints."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import hydrabench
from hydrabench.files import shipped

ROOT = Path(hydrabench.__file__).parents[1]
PROBE = """
import hydrabench
from hydrabench.checkpoints import open_ref, read_manifest
from hydrabench.recipes import load_recipe
assert hydrabench.__file__.startswith(sys.argv[1]), hydrabench.__file__
for name, entry in read_manifest().items():
    assert open_ref(name).sha256 == entry.sha256
print(len(read_manifest()), load_recipe("digits-trades").name)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The contents of a freshly built wheel, unpacked into a folder of their own."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout, so there is no list of the files that belong to it")
    for name in tracked.stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(folder), str(source)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_module_recipe_and_checkpoint(installed):
    package = Path(hydrabench.__file__).parent
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    packed = {path.relative_to(installed / "hydrabench").as_posix() for path in (installed / "hydrabench").rglob("*.*")}
    assert modules <= packed
    assert "py.typed" in packed
    for folder, pattern in (
        ("configs", "*.yml"),
        ("zoo", "*.yml"),
        ("zoo", "*.json"),
        ("zoo", "*/*.safetensors"),
        ("zoo", "*/*.gz"),
    ):
        found = {f"{folder}/{path.relative_to(shipped(folder)).as_posix()}" for path in shipped(folder).glob(pattern)}
        assert found
        assert found <= packed, folder


def test_a_wheel_installed_elsewhere_finds_zoo_and_recipes(installed, tmp_path):
    isolated = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); " + PROBE, str(installed)]
    done = subprocess.run(isolated, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "digits-trades"
    assert int(done.stdout.split()[0]) >= 4


SCRIPTS = sorted(path for folder in ("examples", "tools", "benchmarks") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_beside_the_package_import_what_it_has(path):
    """They are not run here, so that a name that has gone would be noticed by a user first."""
    taken = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in taken:
        if node.module and node.module.partition(".")[0] == "hydrabench":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}"), alias.name
