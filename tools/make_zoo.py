"""Make the zoo's checkpoints again: run pipelines, copy their results, write the manifest.

    python tools/make_zoo.py                          # the digits, in minutes
    python tools/make_zoo.py cifar10-crown-ibp-cifar_model cifar10-trades-cifar_model    # hours; data: HYDRABENCH_DATA
    python tools/make_zoo.py --runs RUNS RECIPE...    # RUNS: where the pipelines run, resumed if they are there
    python tools/make_zoo.py --seed 1 RECIPE...       # another seed; its dense checkpoint is called NAME-seed1
    python tools/make_zoo.py --bfloat16 cifar10-trades-wrn_10_1    # trained in bfloat16, channels last
    python tools/make_zoo.py --schema                 # only write the manifest's JSON Schema again

The checkpoints are those that `hydrabench pipeline --config RECIPE` writes, in the compact layout but for the digits',
which are copied byte for byte; the ledgers are those of the same runs, without times. Entries of other recipes stay.
"""

from __future__ import annotations

import one_thread  # noqa: F401  # first: before torch is imported

# isort: split

import argparse
import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hydrabench.checkpoints import export_checkpoint, load_checkpoint
from hydrabench.checkpoints.manifest import SCHEMA, SHIPPED, json_schema
from hydrabench.evaluators import EVALUATORS
from hydrabench.files import sha256_of, write_json, write_text
from hydrabench.ledger import RunFolder, read_run
from hydrabench.recipes import Recipe, load_recipe
from hydrabench.workflows.pipeline import run_pipeline
from hydrabench.workflows.run_options import RunOptions

ZOO = Path(__file__).resolve().parents[1] / "zoo"
DIGITS = ("digits-crown-ibp", "digits-trades")
SHORT = {"-cifar_model": "", "-wrn_10_1": "-wrn"}  # how ids name the architecture at the end of a recipe's name
COMPARED = ("pgd", "ibp", "crown-ibp", "cascade")  # and smoothing, but for the digits, of which these say enough


def main(runs: Path, recipes: Sequence[str], seed: int, options: RunOptions) -> None:
    """Run the pipelines and fill the zoo's folder."""
    manifest = yaml.safe_load((ZOO / SHIPPED).read_text(encoding="utf-8"))
    entries = {entry["id"]: entry for entry in manifest["checkpoints"]}
    for name in recipes:
        suffix = f"-seed{seed}" if seed else ""
        recipe = load_recipe(name, [f"seed={seed}"])
        run_pipeline(recipe, runs / f"{name}{suffix}", options=options, resume=True)
        entries |= {one[1]: add(runs / f"{name}{suffix}", *one) for one in names(recipe, suffix)}
    manifest["checkpoints"] = list(entries.values())
    comments = f"# yaml-language-server: $schema={SCHEMA}\n# Written by make_zoo.py.\n"
    write_text(ZOO / SHIPPED, comments + yaml.safe_dump(manifest, sort_keys=False))
    write_json(ZOO / SCHEMA, json_schema())


def names(recipe: Recipe, suffix: str) -> list[tuple[str, str, str | None]]:
    """Return the run folder, the id and the parent's id of every network of a pipeline that ships."""
    end = next((one for one in SHORT if recipe.name.endswith(one)), "")
    dense = (recipe.name.removesuffix(end) + SHORT[end] if end in SHORT else recipe.name) + suffix
    found: list[tuple[str, str, str | None]] = [("train", dense, None)]
    for kind, infix in (("finetune", ""), ("lwm", "-lwm")):
        if kind == "finetune" or recipe.pipeline.lwm:
            for k in recipe.pipeline.densities:
                found.append((f"{kind}-{k:g}", f"{dense}{infix}-{100 * (1 - k):g}", dense))
    return found


def add(run: Path, folder: str, identity: str, parent: str | None) -> dict[str, Any]:
    """Copy one checkpoint and its ledgers into the zoo and return its entry in the manifest."""
    target = ZOO / identity
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    path, source = target / "checkpoint.safetensors", run / folder / "checkpoint.safetensors"
    header = load_checkpoint(source).header
    if header.recipe in DIGITS:
        shutil.copy(source, path)
    else:
        export_checkpoint(load_checkpoint(source), path, "compact")
    return {
        "id": identity,
        "file": f"{identity}/{path.name}",
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
        "dataset": header.dataset,
        "arch": header.arch,
        "objective": header.objective["name"],
        "density": header.density,
        "parent": parent,
        "recipe": header.recipe,
        "licence": "MIT",
        "normalization": header.normalization and header.normalization.model_dump(mode="json"),
        "additional_data": False,
        "results": [ledger(found, target) for found in evaluations(run, folder, header.recipe)],
    }


def evaluations(run: Path, folder: str, recipe: str | None) -> list[RunFolder]:
    """The evaluation runs of one checkpoint whose ledgers are shipped."""
    found = [read_run(path.parent) for path in sorted((run / "evaluations" / folder).glob("*/run.json"))]
    kinds = COMPARED if recipe in DIGITS else (*COMPARED, "smoothing")
    return [evaluation for evaluation in found if evaluation.header["settings"]["kind"] in kinds]


def ledger(run: RunFolder, target: Path) -> dict[str, Any]:
    """Ship one ledger without its times, and return its entry."""
    settings = run.header["settings"]
    records = [{key: value for key, value in record.items() if key != "seconds"} for record in run.records()]
    count, radius = held(records, settings)
    file = target / f"{settings['kind']}.jsonl.gz"
    with file.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed:
        packed.write("".join(json.dumps(record) + "\n" for record in records).encode())
    entry = {"settings": settings, "n": len(records), "count": count, "ledger": f"{target.name}/{file.name}"}
    return entry if radius is None else entry | {"radius": radius}


def held(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> tuple[int, float | None]:
    """Return how many images hold, and of a certificate by smoothing at which radius: the smallest that is not 0."""
    evaluator = EVALUATORS[settings["kind"]]
    metrics = evaluator.metrics(records, evaluator.read(settings))
    if evaluator.claims == "smoothed":
        radius = min(radius for radius in settings["radii"] if radius > 0)
        (metric,) = [one for one in metrics.values() if one.radius == radius]
        return int(sum(metric.values)), radius
    return int(sum(metrics[{"upper": "robust_accuracy", "lower": "verified_accuracy"}[evaluator.claims]].values)), None


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", default=DIGITS)
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--schema", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    if given.schema:
        write_json(ZOO / SCHEMA, json_schema())
    else:
        fast = {"precision": "bfloat16", "channels_last": True} if given.bfloat16 else {}
        main(given.runs, given.recipes, given.seed, RunOptions(device="cpu", **fast))
