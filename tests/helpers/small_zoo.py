"""A zoo of two checkpoints: its settings, its ledgers, and the command on it."""

from __future__ import annotations

import gzip
import json

from click.testing import CliRunner

from hydrabench.cli import main
from hydrabench.evaluators import PgdSettings, VerifiedSettings

N = 40
SETTINGS = {
    "pgd": PgdSettings(epsilon="8/255", steps=3),
    "ibp": VerifiedSettings(kind="ibp", epsilon="1/255"),
}
VERDICT = {"pgd": "robust", "ibp": "verified"}
MARGIN = {"pgd": "margin", "ibp": "lower"}


def read_ledger(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_ledger(path, records):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def hydrabench(*arguments):
    result = CliRunner().invoke(main, ["zoo", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result
