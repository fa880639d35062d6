"""Plugins written by hand, and a process that forgets them after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hydrabench import plugins
from hydrabench.recipes.registries import registries


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes out of the registries what plugins have added, as in a new process."""
    before = [dict(registry.entries) for registry in registries()]
    monkeypatch.setattr(plugins, "_loaded", {})

    def put_back() -> None:
        plugins._loaded.clear()
        for registry, entries in zip(registries(), before, strict=True):
            registry.entries.clear()
            registry.entries.update(entries)

    return put_back


@pytest.fixture(autouse=True)
def clean(forget: Callable[[], None]) -> Iterator[None]:
    yield
    forget()


@pytest.fixture
def write_plugin(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "mine.py") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write
