"""For every test: nothing of the person who runs them gets into a lab or a guest."""

import os

import pytest


@pytest.fixture(autouse=True)
def nobody_in_particular(monkeypatch):
    """No configuration of git, no keys."""
    for name in list(os.environ):
        if name.startswith("GIT_") or name.endswith(("_API_KEY", "_TOKEN")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
