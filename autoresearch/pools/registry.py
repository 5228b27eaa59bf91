"""The pool of a name. Plugins: autoresearch.pools (see `plugins`).

A plugin's entry point is callable as (worker, devices of this machine) -> Pool.
"""

from autoresearch import plugins
from autoresearch.errors import LabError
from autoresearch.experiment import Device
from autoresearch.pools import Pool, RunWorker
from autoresearch.pools.inline import InlinePool
from autoresearch.pools.local import LocalPool


def load_pool(name: str, worker: RunWorker, devices: tuple[Device, ...]) -> Pool:
    """Make the pool that config.toml names; LabError for an unknown name."""
    if name == "local":
        make_local = InlinePool if len(devices) == 1 else LocalPool
        return make_local(worker, devices)
    make = plugins.load_plugin("pools", name)
    if make is None:
        known = ", ".join(("local", *plugins.plugin_names("pools")))
        raise LabError(
            f"unknown pool {name!r}; the pools are: {known}. Next: correct `pool` in "
            "config.toml"
        )
    pool: Pool = make(worker, devices)
    return pool
