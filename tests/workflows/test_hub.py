"""Repositories of the hub: what `zoo export --format hf` writes is opened again, and its card's commands are true."""

from __future__ import annotations

import json
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from hydrabench.checkpoints import open_ref, read_zoo, state_of
from hydrabench.checkpoints.zoo import checkpoint_name
from hydrabench.cli import main
from hydrabench.data import load_images
from hydrabench.errors import CheckpointError, ConfigError, DataError, LedgerError
from hydrabench.workflows.zoo import export_entry

ZOO_ID = "digits-crown-ibp-95"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "net"
    result = CliRunner().invoke(main, ["zoo", "export", ZOO_ID, "--format", "hf", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def hub(monkeypatch, repository):
    """A stand-in for huggingface_hub with one repository; it keeps what it was asked for."""
    asked = []

    def hf_hub_download(repo_id, filename):
        asked.append((repo_id, filename))
        if (repo_id, filename) != ("org/net", "model.safetensors"):
            raise OSError(f"404: no {filename} in {repo_id}")
        return str(repository / filename)

    module = ModuleType("huggingface_hub")
    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_a_repository_holds_weights_config_and_card_and_opens_as_the_same_network(repository):
    assert sorted(path.name for path in repository.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    found, original = open_ref(str(repository)), open_ref(ZOO_ID)
    x = torch.rand(4, *original.header.shape)
    with torch.no_grad():
        assert torch.equal(found.baked().eval()(x), original.baked().eval()(x))
    config = json.loads((repository / "config.json").read_text())
    assert (config["library_name"], config["arch"]) == ("hydrabench", original.header.arch)
    assert checkpoint_name(str(repository)).endswith("/net")


def test_the_card_has_every_number_of_the_zoo_and_its_command_makes_it_again(repository, tmp_path):
    card, entry = (repository / "README.md").read_text(), read_zoo()[ZOO_ID]
    assert entry.results
    commands = re.findall(r"`hydrabench ((?:attack|certify) [^`]*)`", card)
    assert len(commands) == len(entry.results)
    for result in entry.results:
        assert f"| {result.n} | {100 * result.count / result.n:.1f}% |" in card
    chosen = next(place for place, one in enumerate(entry.results) if one.settings["kind"] == "ibp")
    words = commands[chosen].replace("hf:ORG/REPO", str(repository)).split()
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["verified_accuracy"]["count"] == entry.results[chosen].count


def test_an_existing_folder_is_not_written_over(repository):
    with pytest.raises(LedgerError, match="exists already"):
        export_entry(ZOO_ID, repository, "hf")


def test_a_reference_is_fetched_through_the_library(hub):
    found = open_ref("hf:org/net")
    assert hub == [("org/net", "model.safetensors")]
    expected = state_of(open_ref(ZOO_ID).network)
    assert found.header.dataset == "digits"
    assert expected.keys() >= state_of(found.network).keys()
    assert checkpoint_name("hf:org/net") == "org/net"
    open_ref("hf:org/net/model.safetensors")


@pytest.mark.parametrize(
    ("ref", "kind", "message"),
    [
        ("hf:org/other", CheckpointError, r"model\.safetensors cannot be fetched \(404.*name another file of it"),
        ("hf:org/net/w.pt", CheckpointError, r"w\.pt cannot be fetched \(404: no w\.pt in org/net\)$"),
        ("hf:net", ConfigError, "write hf:ORG/REPO or hf:ORG/REPO/FILE"),
        ("hf:org/../../x", ConfigError, "write hf:ORG/REPO or hf:ORG/REPO/FILE"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(hub, ref, kind, message):
    with pytest.raises(kind, match=message):
        open_ref(ref)


def test_without_the_libraries_there_are_lines_that_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="`pip install huggingface_hub`"):
        open_ref("hf:org/net")
    with pytest.raises(DataError, match="`pip install datasets`"):
        load_images("hf:org/images", "test")


class Rows(list):
    """A split as the library gives it: rows, columns by name, and what is known of the columns."""

    @property
    def features(self):
        return {"image": None, "label": SimpleNamespace(names=["cat", "dog"])}

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


@pytest.fixture
def library(monkeypatch):
    """A stand-in for `datasets` with two images, of one size in the split "test"."""
    pictures = np.random.default_rng(0).integers(0, 255, (2, 5, 4, 3), dtype=np.uint8)

    def load_dataset(name, split):
        if name != "org/images":
            raise FileNotFoundError(f"{name} is not there")
        rows = Rows({"image": Image.fromarray(one), "label": label} for label, one in enumerate(pictures))
        if split == "mixed":
            rows[0]["image"] = Image.new("RGB", (9, 9))
        return rows

    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return pictures


def test_a_data_set_of_the_hub_is_its_test_split_with_the_names_of_its_classes(library):
    found = load_images("hf:org/images", "test")
    assert torch.equal(found.take(torch.arange(2)), torch.from_numpy(library).permute(0, 3, 1, 2))
    assert (found.labels.tolist(), found.names, found.num_classes) == ([0, 1], ("cat", "dog"), 2)


def test_data_sets_that_are_not_there_or_not_of_one_size_are_refused(library):
    with pytest.raises(DataError, match=r"cannot be loaded \(org/other is not there\); write hf:ORG/NAME"):
        load_images("hf:org/other", "test")
    with pytest.raises(DataError, match="images of 2 sizes"):
        load_images("hf:org/images:mixed", "test")
