"""Make the zoo's digits checkpoints again: run the two pipelines, copy their results, write the manifest.

    python tools/make_zoo.py [RUNS]       # RUNS: where the pipelines run (default runs/zoo), resumed if they are there
    python tools/make_zoo.py --schema     # only write the manifest's JSON Schema again

The checkpoints are those that `hydrabench pipeline --config digits-crown-ibp` and `--config digits-trades` write,
byte for byte; the ledgers are those of the same runs, without times. What is not shipped, smoothing, is not computed.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see hydrabench/process.py
os.environ.setdefault("MKL_NUM_THREADS", "1")

import yaml

from hydrabench.checkpoints import load_checkpoint
from hydrabench.checkpoints.manifest import SCHEMA, SHIPPED, json_schema
from hydrabench.evaluators import EVALUATORS
from hydrabench.files import sha256_of, write_json, write_text
from hydrabench.ledger import RunFolder, read_run
from hydrabench.recipes import load_recipe
from hydrabench.workflows.pipeline import run_pipeline
from hydrabench.workflows.run_options import RunOptions

ZOO = Path(__file__).resolve().parents[1] / "zoo"
RECIPES = ("digits-crown-ibp", "digits-trades")
COMPARED = ("pgd", "ibp", "crown-ibp")  # deterministic verdicts; smoothing counts would need their noise


def main(runs: Path) -> None:
    """Run the pipelines and fill the zoo's folder."""
    entries = []
    for name in RECIPES:
        recipe = load_recipe(name)
        shipped = tuple(settings for settings in recipe.evaluate if settings.kind in COMPARED)
        recipe = recipe.model_copy(update={"evaluate": shipped})
        run_pipeline(recipe, runs / name, options=RunOptions(device="cpu"), resume=True)
        folders = {"train": name}
        folders |= {f"finetune-{k:g}": f"{name}-{100 * (1 - k):g}" for k in recipe.pipeline.densities}
        folders |= {
            f"lwm-{k:g}": f"{name}-lwm-{100 * (1 - k):g}" for k in recipe.pipeline.densities if recipe.pipeline.lwm
        }
        entries += [add(runs / name, folder, identity) for folder, identity in folders.items()]
    manifest = {"schema_version": "hydrabench.zoo/1", "checkpoints": entries}
    comments = f"# yaml-language-server: $schema={SCHEMA}\n# Written by make_zoo.py.\n"
    write_text(ZOO / SHIPPED, comments + yaml.safe_dump(manifest, sort_keys=False))
    write_json(ZOO / SCHEMA, json_schema())


def add(run: Path, folder: str, identity: str) -> dict[str, Any]:
    """Copy one checkpoint and its ledgers into the zoo and return its entry in the manifest."""
    target = ZOO / identity
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    path = Path(shutil.copy(run / folder / "checkpoint.safetensors", target / "checkpoint.safetensors"))
    header = load_checkpoint(path).header
    return {
        "id": identity,
        "file": f"{identity}/{path.name}",
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
        "dataset": header.dataset,
        "arch": header.arch,
        "objective": header.objective["name"],
        "density": header.density,
        "parent": header.recipe if header.density < 1 else None,
        "recipe": header.recipe,
        "licence": "MIT",
        "normalization": header.normalization and header.normalization.model_dump(mode="json"),
        "additional_data": False,
        "results": [ledger(found, target) for found in evaluations(run, folder)],
    }


def evaluations(run: Path, folder: str) -> list[RunFolder]:
    """The evaluation runs of one checkpoint whose ledgers are shipped."""
    found = [read_run(path.parent) for path in sorted((run / "evaluations" / folder).glob("*/run.json"))]
    return [evaluation for evaluation in found if evaluation.header["settings"]["kind"] in COMPARED]


def ledger(run: RunFolder, target: Path) -> dict[str, Any]:
    """Ship one ledger without its times, and return its entry."""
    settings = run.header["settings"]
    records = [{key: value for key, value in record.items() if key != "seconds"} for record in run.records()]
    verdict = {"upper": "robust", "lower": "verified"}[EVALUATORS[settings["kind"]].claims]
    file = target / f"{settings['kind']}.jsonl.gz"
    with file.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed:
        packed.write("".join(json.dumps(record) + "\n" for record in records).encode())
    return {
        "settings": settings,
        "n": len(records),
        "count": sum(record[verdict] for record in records),
        "ledger": f"{target.name}/{file.name}",
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--schema"]:
        write_json(ZOO / SCHEMA, json_schema())
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/zoo"))
