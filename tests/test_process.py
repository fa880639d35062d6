"""How a process prepares itself before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hydrabench.process import leave, prepare

FAULTS = """
import resource, sys
sys.path.insert(0, {root!r})
from hydrabench.process import leave, prepare
if {prepared}:
    prepare()
def fill():
    block = bytearray(40_000_000)
    block[::4096] = b"x" * len(block[::4096])
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
assert "torch" not in sys.modules
"""


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    prepare()
    assert (os.environ["MKL_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("3", "PASSIVE")


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_stays_with_the_process():
    """Five blocks of 40 MB are 48,828 pages: touched anew each time, or only once."""

    def page_faults(*, prepared: bool) -> int:
        script = FAULTS.format(root=os.getcwd(), prepared=prepared)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert page_faults(prepared=False) > 40_000
    assert page_faults(prepared=True) < 20_000


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (1, 1), ("text", 1)])
def test_a_process_of_several_leaves_with_its_code_and_all_that_it_printed(code, status):
    script = f"import sys\nsys.path.insert(0, {os.getcwd()!r})\nfrom hydrabench.process import leave\nimport atexit\n"
    script += f"atexit.register(print, 'late')\nprint('done', end='')\nleave({code!r})"
    environment = {**os.environ, "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (status, "done")


def test_a_process_alone_goes_on_to_its_usual_end(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert leave(3) is None


def test_importing_hydrabench_changes_nothing_and_its_entry_point_prepares():
    """No variable is set and no allocator told by an import; `python -m hydrabench` does both."""
    script = (
        "import ctypes, os, sys; before = dict(os.environ); calls = []; ctypes.CDLL = lambda name: calls.append(name)\n"
        "import hydrabench.cli, hydrabench.__main__\n"
        "assert (dict(os.environ), calls) == (before, []); hydrabench.__main__.run()"
    )
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "MKL_NUM_THREADS")}
    clean["PYTHONPATH"] = os.getcwd()
    entry = f"import atexit, os; atexit.register(lambda: print(os.environ.get('MKL_NUM_THREADS')))\n{script}"
    done = subprocess.run([sys.executable, "-c", entry, "--version"], capture_output=True, text=True, env=clean,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "1"
