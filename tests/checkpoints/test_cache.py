"""The cache of fetched checkpoints and its lock file."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hydrabench.checkpoints import open_ref
from hydrabench.checkpoints.cache import LOCK, cache_folder, cached_files, fetch_remote
from hydrabench.checkpoints.manifest import ZooEntry
from hydrabench.errors import CheckpointError
from hydrabench.masking import attach_masks, bake_masks
from hydrabench.models import build_model
from tests.helpers.server import BODY, OTHER, PAGE, answer, sha, zipped


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRABENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cache(empty_cache, monkeypatch):
    """For files that stand for networks."""
    monkeypatch.setattr("hydrabench.checkpoints.cache._require_network", lambda entry, files: None)
    return empty_cache


def entry(url, **changes):
    values = {"id": "hydra/x-99", "url": url, "dataset": "cifar10", "arch": "wrn_28_4", "objective": "trades",
              "density": 0.01, "licence": "none stated"}  # fmt: skip
    return ZooEntry.model_validate(values | changes)


FOLDER = {"model_best_dense.pth.tar": b"D" * 5000, "model_best.pth.tar": b"M" * 9000}

KINDS = {"file": (answer(), {}, BODY), "zip": (answer(zipped(FOLDER)), {"archive": "zip"}, b"D" * 5000)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_fetched_once(site, cache, kind):
    reply, changes, content = KINDS[kind]
    wanted = entry(site.put("/w.pth.tar?dl=1", reply), **changes)
    assert cached_files(wanted) == []
    files = fetch_remote(wanted)
    assert (len(site.requests), files[0].read_bytes()) == (1, content)
    assert fetch_remote(wanted) == fetch_remote(wanted, offline=True) == cached_files(wanted) == files
    assert len(site.requests) == 1
    assert all(path.parent == cache / "zoo" / "hydra" / "x-99" for path in files)
    assert {path.name for path in files[0].parent.iterdir()} == {path.name for path in files} | {".lock"}


def test_a_zip_gives_the_dense_file_first_and_its_masked_twin_beside_it(site, cache):
    dense, masked = fetch_remote(entry(site.put("/w", answer(zipped(FOLDER))), archive="zip"))
    assert (dense.name, masked.name) == ("checkpoint_dense.pth.tar", "checkpoint.pth.tar")
    assert masked.read_bytes() == b"M" * 9000


def test_the_first_fetch_is_written_to_the_lock_file(site, cache):
    fetch_remote(entry(site.put("/w", answer(zipped(FOLDER))), archive="zip"))
    fetch_remote(entry(site.put("/v.safetensors", answer()), id="other"))
    locked = {
        "hydra/x-99": {
            "checkpoint_dense.pth.tar": {"sha256": sha(b"D" * 5000), "bytes": 5000},
            "checkpoint.pth.tar": {"sha256": sha(b"M" * 9000), "bytes": 9000},
        },
        "other": {"checkpoint.safetensors": {"sha256": sha(BODY), "bytes": len(BODY)}},
    }
    assert json.loads((cache / LOCK).read_text()) == {"schema_version": "hydrabench.zoo-lock/1", "checkpoints": locked}


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_cache_is_fetched_again_and_refused_offline(site, cache, kind, damage):
    reply, changes, content = KINDS[kind]
    wanted = entry(site.put("/w", reply), **changes)
    damage(fetch_remote(wanted)[-1])
    with pytest.raises(CheckpointError, match=r"x-99 is not in the cache .*, or damaged there; fetch it without --off"):
        fetch_remote(wanted, offline=True)
    assert fetch_remote(wanted)[0].read_bytes() == content
    assert len(site.requests) == 2


def test_a_file_that_changed_since_the_first_fetch_is_refused_with_both_hashes(site, cache):
    wanted = entry(site.put("/w", answer()))
    (path,) = fetch_remote(wanted)
    path.unlink()
    site.put("/w", answer(OTHER))
    message = (
        rf"{sha(OTHER)}; right is {len(BODY)} bytes, SHA-256 {sha(BODY)}, says the first fetch, recorded in .*{LOCK}"
    )
    with pytest.raises(CheckpointError, match=message):
        fetch_remote(wanted)
    assert not path.exists()
    (cache / LOCK).unlink()
    assert fetch_remote(wanted)[0].read_bytes() == OTHER


def test_a_folder_that_is_packed_anew_is_the_same_and_one_that_changed_is_not(site, cache):
    """The zip file of a shared folder holds times, so its own hash differs each time it is made."""
    wanted = entry(site.put("/w", answer(zipped(FOLDER))), archive="zip")
    dense, masked = fetch_remote(wanted)
    masked.unlink()
    again = zipped(FOLDER, date=(2021, 1, 1, 0, 0, 0))
    assert again != zipped(FOLDER)
    site.put("/w", answer(again))
    assert fetch_remote(wanted) == [dense, masked]
    masked.unlink()
    site.put("/w", answer(zipped(FOLDER | {"model_best.pth.tar": b"other"})))
    message = (
        rf"gave a checkpoint\.pth\.tar with SHA-256 {sha(b'other')}; right is SHA-256 {sha(b'M' * 9000)}, says the fi"
    )
    with pytest.raises(CheckpointError, match=message):
        fetch_remote(wanted)
    site.put("/w", answer(zipped({"model_best_dense.pth.tar": b"D" * 5000})))
    with pytest.raises(CheckpointError, match=r"gives no checkpoint\.pth\.tar, unlike the first fetch"):
        fetch_remote(wanted)
    assert (dense.read_bytes(), masked.exists()) == (b"D" * 5000, False)
    assert {path.name for path in dense.parent.iterdir()} == {dense.name, ".lock"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_has_the_last_word_on_a_hash(site, cache, kind):
    reply, changes, content = KINDS[kind]
    wrong, right = (entry(site.put("/w", reply), sha256=known, **changes) for known in ("0" * 64, sha(content)))
    with pytest.raises(
        CheckpointError, match=rf"x-99 could not be fetched: .*SHA-256 {sha(content)}; .*says the manif"
    ):
        fetch_remote(wrong)
    assert not (cache / LOCK).exists()
    fetch_remote(right)
    assert cached_files(wrong) == []


def test_what_cannot_be_fetched_is_one_line_that_says_what_to_do(site, cache):
    wanted = entry(site.put("/w", answer(PAGE)), archive="zip", mirrors=(site.put("/m", answer(BODY)),))
    message = (
        r"^zoo checkpoint hydra/x-99 could not be fetched: what came is not a whole zip file .*\. Try again later, "
    )
    with pytest.raises(
        CheckpointError, match=message + r"or get it with a browser from http\S+/w and give the path of"
    ):
        fetch_remote(wanted)
    with pytest.raises(CheckpointError, match=r"/w: gave a web page .*; http\S+/m: the server answered 404"):
        fetch_remote(wanted.model_copy(update={"mirrors": (site.put("/m", answer(status=404)),)}))
    assert list((cache / "zoo" / "hydra" / "x-99").iterdir()) == [cache / "zoo" / "hydra" / "x-99" / ".lock"]


@pytest.mark.parametrize("text", ["{", '{"checkpoints": {"x": {"../evil": {"sha256": "", "bytes": 1}}}}'])
def test_a_damaged_lock_file_is_refused_rather_than_ignored(site, cache, text):
    cache.mkdir()
    (cache / LOCK).write_text(text)
    with pytest.raises(CheckpointError, match=r"the lock file .* is damaged; put it right, or remove it to trust"):
        fetch_remote(entry(site.put("/w", answer())))
    assert site.requests == []


def test_a_cache_that_cannot_be_written_is_named(site, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(
        CheckpointError, match=r"cannot keep zoo checkpoint .*; set HYDRABENCH_CACHE to a folder with room"
    ):
        fetch_remote(entry(site.put("/w", answer())))


def test_processes_that_want_the_same_checkpoint_at_once_fetch_it_once(site, cache):
    """Each opens the lock by itself, as the ranks of a distributed run do."""
    wanted = entry(site.put("/w", answer(zipped(FOLDER))), archive="zip")
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: fetch_remote(wanted), range(6)))
    assert (len(site.requests), found) == (1, [cached_files(wanted)] * 6)


def torch_bytes(values):
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


NO_NETWORKS = {
    "a notice of a quota": (answer(b"quota exceeded, try again tomorrow"), r"is no file of torch\.save, or is damaged"),
    "half of it": (answer(BODY[: len(BODY) // 2]), r"is no file of torch\.save, or is damaged"),
    "another network": (answer(torch_bytes(build_model("cifar_model", (3, 32, 32), 10).state_dict())),
                        r"what came is no wrn_28_4 for cifar10: .* does not fit the architecture"),
    "a program": (answer(torch_bytes({"state_dict": {}, "main": print})), r"running code \([\w.]*print\)"),
    "numbers": (answer(torch_bytes([1, 2, 3])), r"holds no state dict of tensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_NETWORKS)
def test_what_does_not_load_as_the_network_is_not_trusted(site, empty_cache, kind):
    reply, message = NO_NETWORKS[kind]
    wanted = entry(site.put("/w.pth", reply))
    with pytest.raises(CheckpointError, match=message) as problem:
        fetch_remote(wanted)
    assert "\n" not in str(problem.value)
    assert not (empty_cache / LOCK).exists()
    assert cached_files(wanted) == []
    assert {path.name for path in (empty_cache / "zoo" / "hydra" / "x-99").iterdir()} == {".lock"}


def test_a_released_checkpoint_opens_by_its_id(site, empty_cache, tmp_path, monkeypatch):
    """The manifest says what the file does not: that its network is for SVHN, and the density."""
    network = build_model("cifar_model", (3, 32, 32), 10, generator=torch.Generator().manual_seed(0))
    attach_masks(network, 0.1)
    bake_masks(network)
    file = io.BytesIO()
    torch.save({"epoch": 1, "arch": "other", "state_dict": network.state_dict()}, file)
    url = site.put("/w", answer(zipped({"model_best_dense.pth.tar": file.getvalue()})))
    released = {"id": "hydra/x", "url": url, "archive": "zip", "dataset": "svhn", "arch": "cifar_model",
                "objective": "trades", "density": 0.1, "licence": "none stated"}  # fmt: skip
    for name, entries in (("manifest.yml", []), ("released.yml", [released])):
        (tmp_path / name).write_text(json.dumps({"schema_version": "hydrabench.zoo/1", "checkpoints": entries}))
    monkeypatch.setattr("hydrabench.checkpoints.zoo.shipped", lambda _: tmp_path)
    for _ in range(2):
        header = open_ref("hydra/x").header
        assert (header.arch, header.dataset, header.density) == ("cifar_model", "svhn", 0.1)
    assert len(site.requests) == 1


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("HYDRABENCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "hydrabench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hydrabench"
    monkeypatch.setenv("HYDRABENCH_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
