"""Manifests: their format, its published schema, the released checkpoints that we list, and names for checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import hydrabench
from hydrabench.checkpoints import manifest, resolve
from hydrabench.checkpoints.manifest import RELEASED, SCHEMA, SHIPPED, Manifest, json_schema, read_entries
from hydrabench.checkpoints.zoo import fetch, find_entry, read_manifest, read_zoo
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.models import MODELS

ZOO = Path(hydrabench.__file__).parents[1] / "zoo"
REMOTE = {"id": "hydra/x-99", "url": "https://example.org/w.pth", "dataset": "cifar10", "arch": "wrn_28_4",
          "objective": "trades", "density": 0.01, "licence": "none stated"}  # fmt: skip
LOCAL = {key: value for key, value in REMOTE.items() if key != "url"} | {
    "id": "x", "file": "x/checkpoint.safetensors", "sha256": "0" * 64, "bytes": 10,
}  # fmt: skip


def write(folder, *entries, name=SHIPPED):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(yaml.safe_dump({"schema_version": "hydrabench.zoo/1", "checkpoints": list(entries)}))
    return path


# The format -----------------------------------------------------------------------------------


def test_what_an_entry_leaves_out_is_not_known_or_not_there(tmp_path):
    entry = read_entries(write(tmp_path, REMOTE))["hydra/x-99"]
    assert (entry.sha256, entry.bytes, entry.parent, entry.recipe, entry.normalization) == (None,) * 5
    assert (entry.addresses, entry.results, entry.published) == (("https://example.org/w.pth",), (), ())
    assert read_entries(write(tmp_path, LOCAL))["x"].addresses == ()


def test_the_address_comes_before_its_mirrors(tmp_path):
    mirrors = ["http://a.org/1", "https://b.org/2"]
    entry = read_entries(write(tmp_path, REMOTE | {"mirrors": mirrors}))["hydra/x-99"]
    assert entry.addresses == ("https://example.org/w.pth", *mirrors)


def test_a_manifest_is_parsed_once_and_anew_when_it_changed(tmp_path, monkeypatch):
    """Changed to a text of the same length, and as quickly as a file system can tell."""
    parsed, parse = [], manifest.parse_yaml
    monkeypatch.setattr(manifest, "parse_yaml", lambda *given: parsed.append(given) or parse(*given))
    write(tmp_path, LOCAL)
    for _ in range(2):
        read_manifest(tmp_path).clear()  # what is handed out is a copy
        assert read_manifest(tmp_path)["x"].bytes == 10
    assert len(parsed) == 1
    write(tmp_path, LOCAL | {"bytes": 11})
    assert read_manifest(tmp_path)["x"].bytes == 11


PUBLISHED = {"metric": "robust_accuracy", "value": 0.5, "procedure": "PGD", "source": "a paper"}
BAD = [
    (REMOTE | {"license": "MIT"}, r"checkpoints\.0: unknown key of hydra/x-99: 'license'; did you mean 'licence'\?$"),
    (REMOTE | {"datset": "x", "zzz": 1}, r"unknown key of hydra/x-99: 'datset', 'zzz'; did you mean 'dataset'\?$"),
    (
        REMOTE | {"published": [PUBLISHED | {"valeu": 1}]},
        r"published\.0: unknown key: 'valeu'; did you mean 'value'\?$",
    ),
    (REMOTE | {"published": [PUBLISHED | {"value": 47.3}]}, r"published\.0\.value: .*less than or equal to 1"),
    (REMOTE | {"published": [PUBLISHED | {"metric": "accuracy"}]}, r"published\.0\.metric: .*'clean_accuracy'"),
    (
        REMOTE | {"file": "x"},
        r"checkpoints\.0: hydra/x-99 needs `file` \(shipped\) or `url` \(on the web\), and not both$",
    ),
    (REMOTE | {"url": None}, r"hydra/x-99 needs `file` \(shipped\) or `url` \(on the web\), and not both$"),
    (LOCAL | {"sha256": None}, r"checkpoints\.0: x is shipped, so it needs `sha256` and `bytes`$"),
    (LOCAL | {"mirrors": ["https://a.org/1"]}, r"x is shipped, so `mirrors` and `archive` have no meaning$"),
    (REMOTE | {"url": "ftp://a.org/1"}, r"checkpoints\.0\.url: .*got 'ftp://a\.org/1'"),
    (REMOTE | {"mirrors": ["file:///etc/passwd"]}, r"checkpoints\.0\.mirrors\.0: .*got 'file:///etc/passwd'"),
    (REMOTE | {"id": "../evil"}, r"checkpoints\.0\.id: .*got '\.\./evil'"),
    (REMOTE | {"id": "a/../../evil"}, r"checkpoints\.0\.id: "),
    (REMOTE | {"density": 99}, r"checkpoints\.0\.density: is the fraction of weights kept.*`density: 0\.01`"),
    (REMOTE | {"sha256": "abc", "archive": "rar"}, r"checkpoints\.0\.archive: .*; checkpoints\.0\.sha256: "),
]


@pytest.mark.parametrize(("entry", "message"), BAD)
def test_a_manifest_that_is_wrong_is_refused_in_one_line(tmp_path, entry, message):
    with pytest.raises(ConfigError, match=message) as problem:
        read_entries(write(tmp_path, entry))
    assert str(problem.value).startswith(f"{tmp_path / SHIPPED}: checkpoints.0")
    assert "\n" not in str(problem.value)


def test_every_problem_of_every_entry_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoints\.0: unknown key .*; checkpoints\.1\.arch: is required$"):
        read_entries(write(tmp_path, REMOTE | {"licens": ""}, {k: v for k, v in LOCAL.items() if k != "arch"}))


def test_an_id_stands_for_one_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match=r"two checkpoints have the id hydra/x-99$"):
        read_entries(write(tmp_path, REMOTE, LOCAL, REMOTE))


def test_a_manifest_that_is_not_yaml_or_of_another_version_is_refused(tmp_path):
    path = tmp_path / SHIPPED
    for text, message in (
        ("a: [", r"is not YAML"),
        ("[]", r"the file: expected keys and values \(got \[\]\)"),
        ("schema_version: x", r"schema_version"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_entries(path)


# The schema -----------------------------------------------------------------------------------


def test_the_published_schema_is_that_of_the_code():
    published = json.loads((ZOO / SCHEMA).read_text(encoding="utf-8"))
    assert published == json.loads(json.dumps(json_schema())), "run: python tools/make_zoo.py --schema"


def test_the_schema_allows_no_unknown_key_anywhere():
    schema = json_schema()
    objects = [schema, *(part for part in schema["$defs"].values() if part["type"] == "object")]
    assert {"Manifest", "ZooEntry", "PublishedNumber", "ProtocolResult"} <= {part["title"] for part in objects}
    assert all(part["additionalProperties"] is False for part in objects)
    required = {"id", "dataset", "arch", "objective", "density", "licence"}
    assert set(schema["$defs"]["ZooEntry"]["required"]) == required


@pytest.mark.parametrize("name", [SHIPPED, RELEASED])
def test_our_manifests_name_their_schema_and_use_its_keys(name):
    text = (ZOO / name).read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA}\n")
    keys = json_schema()["$defs"]["ZooEntry"]["properties"]
    entries = yaml.safe_load(text)["checkpoints"]
    assert entries
    assert all(set(entry) <= set(keys) for entry in entries)


# The checkpoints ------------------------------------------------------------------------------


def test_ours_come_first_and_no_id_is_used_twice():
    ours, everything, released = read_manifest(), read_zoo(), read_entries(ZOO / RELEASED)
    assert list(everything) == [*ours, *released]
    assert all(entry.file and entry.results for entry in ours.values())
    assert all((ZOO / result.ledger).is_file() for entry in ours.values() for result in entry.results)
    assert {entry.parent for entry in ours.values() if entry.parent} <= set(ours)


RELEASES = read_entries(ZOO / RELEASED)
OBJECTIVES = {"adv": "trades", "smooth": "stability", "freeadv": "free"}


def test_the_36_released_checkpoints_of_hydra_are_all_there():
    """8 each of adv and smooth for CIFAR-10 and SVHN, WRN-28-10, and three for ImageNet (hydra.md, section 8)."""
    counts: dict[tuple[str, str], int] = {}
    for entry in RELEASES.values():
        counts[entry.dataset, entry.objective] = counts.get((entry.dataset, entry.objective), 0) + 1
    assert counts == {
        ("cifar10", "trades"): 9, ("svhn", "trades"): 8, ("cifar10", "stability"): 8, ("svhn", "stability"): 8,
        ("imagenet", "free"): 3,
    }  # fmt: skip
    assert len({entry.url for entry in RELEASES.values()}) == 36


@pytest.mark.parametrize("name", RELEASES)
def test_the_id_of_a_released_checkpoint_says_what_it_is(name):
    entry = RELEASES[name]
    found = re.fullmatch(r"hydra/(\w+)-(\w+)-(adv|smooth|freeadv)-(0|90|95|99)", name)
    assert found
    assert (entry.dataset, entry.arch, entry.objective) == (found[1], found[2], OBJECTIVES[found[3]])
    assert entry.density == {"0": 1.0, "90": 0.1, "95": 0.05, "99": 0.01}[found[4]]
    assert entry.arch in MODELS
    assert re.fullmatch(r"https://www\.dropbox\.com/sh/[a-z0-9]{15}/AA[\w-]{23}\?dl=1", str(entry.url))
    assert (entry.archive, entry.sha256, entry.bytes, entry.licence) == ("zip", None, None, "none stated")
    assert entry.additional_data == (entry.dataset == "cifar10")
    assert (entry.normalization is not None) == (entry.dataset == "imagenet")


# hydra.md, section 7.1, percent: (objective, data set, arch) -> non-pruned, HYDRA at 90, 95 and 99 %.
TABLES = {
    ("adv", "cifar10", "vgg16_bn"): (51.9, 49.5, 48.7, 41.7),
    ("adv", "cifar10", "wrn_28_4"): (57.2, 55.2, 54.2, 47.3),
    ("adv", "svhn", "vgg16_bn"): (53.5, 52.4, 51.7, 46.8),
    ("adv", "svhn", "wrn_28_4"): (60.1, 62.8, 59.8, 52.4),
    ("smooth", "cifar10", "vgg16_bn"): (61.1, 60.7, 59.9, 54.4),
    ("smooth", "cifar10", "wrn_28_4"): (63.3, 63.0, 62.5, 56.0),
    ("smooth", "svhn", "vgg16_bn"): (60.1, 59.9, 59.3, 58.6),
    ("smooth", "svhn", "wrn_28_4"): (62.2, 62.3, 62.0, 59.6),
}


@pytest.mark.parametrize("row", TABLES, ids=" ".join)
def test_published_numbers_are_those_of_the_papers_tables(row):
    objective, dataset, arch = row
    for pruned, percent in zip((0, 90, 95, 99), TABLES[row], strict=True):
        (number,) = RELEASES[f"hydra/{dataset}-{arch}-{objective}-{pruned}"].published
        assert number.value == pytest.approx(percent / 100)
        assert number.metric == {"adv": "robust_accuracy", "smooth": "certified_accuracy"}[objective]
        assert number.source.endswith("non-pruned" if pruned == 0 else f"HYDRA at {pruned} %")


def test_nothing_is_listed_where_nothing_was_published():
    """The wide ResNet 28-10 has its own numbers (section 7.2 and RobustBench); ImageNet's could not be found."""
    numbers = {(n.metric, n.value) for n in RELEASES["hydra/cifar10-wrn_28_10-adv-90"].published}
    assert numbers == {("clean_accuracy", 0.8897), ("clean_accuracy", 0.8898), ("robust_accuracy", 0.6224),
                       ("robust_accuracy", 0.5788), ("robust_accuracy", 0.5714)}  # fmt: skip
    assert all(not entry.published for name, entry in RELEASES.items() if "imagenet" in name)
    assert sum(len(entry.published) for entry in RELEASES.values()) == 32 + 5


# Names ----------------------------------------------------------------------------------------


def test_an_unknown_id_names_the_most_similar_ones_and_not_all_fifty():
    with pytest.raises(ConfigError) as problem:
        resolve("hydra/cifar10-wrn_28_4-adv-9")
    assert "unknown checkpoint 'hydra/cifar10-wrn_28_4-adv-9'; did you mean 'hydra/cifar10-wrn_28_4-adv-9" in str(
        problem.value
    )
    assert str(problem.value).endswith("? `hydrabench zoo list` shows all, and a path names any file")
    assert len(str(problem.value)) < 300
    with pytest.raises(ConfigError, match=r"^unknown checkpoint '\?\?\?'; `hydrabench zoo list` shows all"):
        find_entry("???")


def test_a_reference_to_the_web_is_the_cached_file(tmp_path, monkeypatch):
    """Once it is there, nothing more is asked of the network."""
    content = b"weights"
    monkeypatch.setenv("HYDRABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hydrabench.checkpoints.zoo.shipped", lambda _: tmp_path / "zoo")
    monkeypatch.setattr(
        "hydrabench.checkpoints.cache.download", lambda addresses, target, **_: target.write_bytes(content)
    )
    monkeypatch.setattr("hydrabench.checkpoints.cache._require_network", lambda entry, files: None)
    write(tmp_path / "zoo", LOCAL)
    write(tmp_path / "zoo", REMOTE, name=RELEASED)
    path = resolve("hydra/x-99")
    assert path == tmp_path / "cache" / "zoo" / "hydra" / "x-99" / "checkpoint.pth"
    monkeypatch.setattr("hydrabench.checkpoints.cache.download", None)
    assert resolve("hydra/x-99") == path
    assert fetch(find_entry("hydra/x-99"), offline=True) == path
    path.unlink()
    with pytest.raises(CheckpointError, match=r"hydra/x-99 is not in the cache"):
        fetch(find_entry("hydra/x-99"), offline=True)


def test_the_model_of_the_format_reads_back_what_it_writes():
    everything = Manifest(schema_version="hydrabench.zoo/1", checkpoints=tuple(read_zoo().values()))
    assert Manifest.model_validate_json(everything.model_dump_json()) == everything
