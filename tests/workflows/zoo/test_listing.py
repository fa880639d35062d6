"""list, show and fetch, on a small zoo of two checkpoints made here."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from hydrabench.checkpoints import open_ref
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.files import sha256_of
from hydrabench.workflows import zoo, zoo_listing
from tests.helpers.small_zoo import hydrabench, read_ledger


def test_list_names_every_checkpoint_with_what_it_is(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    sizes = [(folder / name / "checkpoint.safetensors").stat().st_size for name in ("tiny", "tiny-90")]
    clean = [np.mean([one["prediction"] == one["label"] for one in read_ledger(folder / name / "pgd.jsonl.gz")])
             for name in ("tiny", "tiny-90")]  # fmt: skip
    robust = [np.mean([one["robust"] for one in read_ledger(folder / name / "pgd.jsonl.gz")])
              for name in ("tiny", "tiny-90")]  # fmt: skip
    assert hydrabench("list").stdout.splitlines() == [
        "id       dataset  arch            objective  density  clean  robust  radius  size   where",
        f"tiny     digits   cifar_model_bn  trades     1        {100 * clean[0]:.1f}   {100 * robust[0]:.1f}"
        f"    8/255   {sizes[0] / 1000:.0f} kB  shipped",
        f"tiny-90  digits   cifar_model_bn  trades     0.1      {100 * clean[1]:.1f}   {100 * robust[1]:.1f}"
        f"    8/255   {sizes[1] / 1000:.0f} kB  shipped",
    ]
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, hydrabench("list").stdout.splitlines())) <= 80
    listed = json.loads(hydrabench("list", "--json").stdout)
    assert [entry["id"] for entry in listed] == ["tiny", "tiny-90"]
    assert listed[1]["results"][1]["settings"].items() >= {"kind": "ibp", "norm": "linf", "epsilon": "1/255"}.items()


def test_show_prints_the_entry_as_json(folder):
    shown = json.loads(hydrabench("show", "tiny-90").stdout)
    assert (shown["id"], shown["parent"], shown["licence"]) == ("tiny-90", "tiny", "MIT")
    assert shown["sha256"] == sha256_of(folder / "tiny-90" / "checkpoint.safetensors")


def test_an_unknown_id_names_the_known_ones(folder):
    for command in ("show", "fetch", "verify"):
        result = hydrabench(command, "tiny90")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: unknown checkpoint 'tiny90'; did you mean 'tiny-90' or 'tiny'? `hydra")
        assert result.stderr.count("\n") == 1


def test_fetch_prints_the_path_of_a_file_whose_hash_is_right(folder):
    path = folder / "tiny" / "checkpoint.safetensors"
    assert hydrabench("fetch", "tiny").stdout == f"{path}\n"
    assert open_ref("tiny").sha256 == sha256_of(path)


@pytest.mark.parametrize("use", [zoo.fetch_entry, open_ref], ids=["fetch", "open"])
def test_a_file_with_another_hash_is_refused_wherever_it_is_used(folder, use):
    path = folder / "tiny" / "checkpoint.safetensors"
    shutil.copy(folder / "tiny-90" / "checkpoint.safetensors", path)
    with pytest.raises(CheckpointError, match=r"zoo checkpoint tiny has SHA-256 \w{16}…, the manifest says \w{16}…;"):
        use("tiny")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"zoo checkpoint tiny should lie at .*; install hydrabench again"):
        use("tiny")


def test_a_manifest_that_is_wrong_or_missing_is_refused_in_one_line(folder):
    manifest = folder / "manifest.yml"
    values = yaml.safe_load(manifest.read_text())
    values["checkpoints"][0] |= {"sha256": "abc", "licence": None}
    manifest.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"manifest\.yml: checkpoints\.0\.sha256: .*; checkpoints\.0\.licence: "):
        zoo_listing.list_entries()
    manifest.unlink()
    with pytest.raises(CheckpointError, match=r"the zoo's manifest .* is missing; install hydrabench again"):
        zoo_listing.list_entries()
