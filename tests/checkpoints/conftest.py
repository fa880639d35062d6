"""A server of our own, which every download here comes from."""

from __future__ import annotations

import socket

import pytest

from tests.helpers.server import Site


@pytest.fixture
def site(monkeypatch):
    """The server; connecting to any other machine is a failure of the test."""
    connect = socket.socket.connect

    def connect_here(self, address):
        assert address[0] == "127.0.0.1", f"a test tried to reach {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Site()
    yield server
    server.close()
