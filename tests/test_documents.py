"""Documents from anybody: what is too large, too deep, ambiguous or endless is refused in one line, in no time."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from hydrabench.documents import MOST_VALUES, RECIPE_BYTES, parse_json, parse_yaml, read_json, read_text, read_yaml
from hydrabench.errors import ConfigError

LAUGHS = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000, r"x\.yml is not YAML: it is nested more than 50 deep"),
        ("[" * 5000 + "]" * 5000, r"nested more than 50 deep"),
        ("{a: " * 5000, r"nested more than 50 deep"),
        (LAUGHS, r"its aliases stand for more than 20,000 values"),
        ("a: &a [1, *a]", r"the value in line 1 contains itself"),
        ("seed: " + "9" * 5000, r"a number has more than 4,300 digits"),
        ("train:\n  lr: 0.1\n  lr: 0.2", r"the key 'lr' stands twice, again in line 3"),
        ("a: 1\nb: {c: 1, c: 2}", r"the key 'c' stands twice, again in line 2"),
        ("seed: !!timestamp soon", r"x\.yml is not YAML: "),
        ("seed: !!int ''", r"x\.yml is not YAML: "),
        ("seed: !!python/object/apply:os.getcwd []", r"could not determine a constructor for the tag"),
        ("? [1, 2]\n: 3", r"found unhashable key"),
        ("a: \x00", r"special characters are not allowed"),
        ("--- 1\n--- 2", r"expected a single document"),
        ("a: [1, 2", r"x\.yml is not YAML: "),
    ],
    ids=range(15),
)
def test_yaml_extremes_are_one_line_in_no_time(text, message):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message) as refused:
        parse_yaml(text, "x.yml")
    assert time.monotonic() - start < 2
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_what_looks_like_a_date_is_a_text_and_aliases_and_merges_work():
    assert parse_yaml("seed: 2024-13-45", "x") == {"seed": "2024-13-45"}
    text = "a: &a {x: 1}\nb: {<<: *a, x: 2}\nd: [*a, *a]"
    assert parse_yaml(text, "x") == {"a": {"x": 1}, "b": {"x": 2}, "d": [{"x": 1}, {"x": 1}]}
    assert len(parse_yaml("[" + "1, " * (MOST_VALUES - 1) + "]", "x")) == MOST_VALUES - 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, r"x\.json is not readable as JSON: it is nested too deeply"),
        ('{"a": NaN}', r"NaN is no JSON number"),
        ("[-Infinity]", r"-Infinity is no JSON number"),
        ("1e999", r"the number 1e999 is too large"),
        ("9" * 5000, r"a number has more than 4,300 digits"),
        ('{"n": 1, "n": 2}', r"the key 'n' stands twice in one object"),
        ("{", r"Expecting property name"),
    ],
    ids=range(7),
)
def test_json_extremes_are_one_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_json(text, "x.json")


def test_a_file_is_read_only_if_it_is_regular_small_enough_and_text(tmp_path):
    with pytest.raises(ConfigError, match=r"/dev/zero is a device or a pipe; give a regular file"):
        read_yaml(Path("/dev/zero"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match=r"pipe is a device or a pipe"):
        read_json(pipe)
    with pytest.raises(ConfigError, match=r"is a folder; give a regular file"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "nowhere")
    large = tmp_path / "large.yml"
    with large.open("wb") as file:
        file.truncate(RECIPE_BYTES + 1)
    with pytest.raises(ConfigError, match=r"large\.yml has more than 262,144 bytes, the most that is read here"):
        read_yaml(large)
    (tmp_path / "latin.yml").write_bytes("name: \xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yml is not UTF-8 text"):
        read_yaml(tmp_path / "latin.yml")
    (tmp_path / "windows.yml").write_bytes(b"\xef\xbb\xbfname: a\r\nseed: 3\r\n")
    assert read_yaml(tmp_path / "windows.yml") == {"name": "a", "seed": 3}


def test_the_depth_of_json_is_known_before_the_parser_sees_it():
    """With a high limit of recursion, as some libraries set it, Python's own parser would overflow the stack."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        for deep in ("[" * 10**6, '{"a":' * 10**6, "[" * 51 + "]" * 51):
            with pytest.raises(ConfigError, match="nested too deeply"):
                parse_json(deep, "x.json")
    finally:
        sys.setrecursionlimit(before)
    assert parse_json('["' + "[" * 99 + '"]', "x.json") == ["[" * 99]
    assert parse_json(json.dumps([[]] * 99), "x.json") == [[]] * 99
