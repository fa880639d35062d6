"""One writer of a folder at a time; the lock dies with its process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from hydrabench.errors import LedgerError
from hydrabench.ledger import writing
from hydrabench.ledger.writer import HOLDER

HOLD = """
import sys, time
from pathlib import Path
from hydrabench.ledger import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that writes the folder `run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_writes(holder, tmp_path):
    about = json.loads((tmp_path / "run" / HOLDER).read_text())
    expected = f"is being written by process {holder.pid} on {about['host']}, started {about['started']}; wait until it"
    with pytest.raises(LedgerError) as caught, writing(tmp_path / "run"):
        raise AssertionError("two writers")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lock_dies_with_its_process_and_leaves_nothing(holder, tmp_path):
    (tmp_path / "run" / ".run.json.x1.partial").write_text("half")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with writing(tmp_path / "run"):
        assert not (tmp_path / "run" / ".run.json.x1.partial").exists()
        (tmp_path / "run" / "run.json").write_text("{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
    with writing(tmp_path / "run"):
        pass


def test_a_folder_in_which_nothing_was_written_is_gone_afterwards(tmp_path):
    def stop() -> None:
        with writing(tmp_path / "new"):
            raise LedgerError("refused")

    with pytest.raises(LedgerError, match="refused"):
        stop()
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with writing(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="file/run cannot be written: Not a directory; choose another --out"):
        writing(tmp_path / "file" / "run").__enter__()
