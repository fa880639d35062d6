"""A small zoo of two checkpoints, in the place of the one that comes with hydrabench."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from hydrabench.files import sha256_of
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from tests.helpers.small_zoo import SETTINGS, VERDICT, N, write_ledger


@pytest.fixture(scope="session")
def shipped_zoo(line, cpu, tmp_path_factory):
    """A zoo folder with the dense and the finetuned network of the tiny recipe, and two ledgers of each."""
    root = tmp_path_factory.mktemp("zoo")
    entries = []
    for name, source in (("tiny", line.train), ("tiny-90", line.finetune)):
        (root / name).mkdir()
        file = shutil.copy(source / "checkpoint.safetensors", root / name)
        results = []
        for kind, settings in SETTINGS.items():
            run = root / "runs" / name / kind
            evaluate(open_subject(str(file), options=cpu), settings, run, options=cpu, n=N)
            records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
            count = sum(record[VERDICT[kind]] for record in records)
            assert 0 < count < N
            results.append(
                {
                    "settings": settings.model_dump(mode="json"),
                    "n": N,
                    "count": count,
                    "ledger": f"{name}/{kind}.jsonl.gz",
                }
            )
            write_ledger(root / name / f"{kind}.jsonl.gz", records)
        entries.append(
            {
                "id": name,
                "file": f"{name}/checkpoint.safetensors",
                "sha256": sha256_of(root / name / "checkpoint.safetensors"),
                "bytes": (root / name / "checkpoint.safetensors").stat().st_size,
                "dataset": "digits",
                "arch": "cifar_model_bn",
                "objective": "trades",
                "density": 1.0 if name == "tiny" else 0.1,
                "parent": None if name == "tiny" else "tiny",
                "recipe": "tiny",
                "licence": "MIT",
                "results": results,
            }
        )
    shutil.rmtree(root / "runs")
    (root / "manifest.yml").write_text(yaml.safe_dump({"schema_version": "hydrabench.zoo/1", "checkpoints": entries}))
    return root


@pytest.fixture
def folder(shipped_zoo, tmp_path, monkeypatch):
    """A copy of that zoo, in the place of the one that comes with hydrabench."""
    copy = tmp_path / "shipped"
    shutil.copytree(shipped_zoo, copy)
    for module in ("hydrabench.checkpoints.zoo", "hydrabench.workflows.zoo", "hydrabench.workflows.zoo_listing"):
        monkeypatch.setattr(f"{module}.shipped", {"zoo": copy}.__getitem__)
    return copy
