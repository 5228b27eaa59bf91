"""Plugins and config.toml: what other packages and the user's own settings bring."""

import json
import os
import subprocess
import sys

import pytest

from autoresearch import plugins
from autoresearch.data.sources import registry as source_registry
from autoresearch.errors import LabError
from autoresearch.experiment import Device
from autoresearch.lab import program
from autoresearch.policies import registry as policy_registry
from autoresearch.pools import registry as pool_registry
from autoresearch.proposers import registry as proposer_registry
from tests.nights import command, line_lab

MODULE = """
from autoresearch.experiment import Proposal
from autoresearch.policies.greedy import GreedyPolicy
from autoresearch.pools.inline import InlinePool

policy = GreedyPolicy
pool = InlinePool


class Proposer:
    name = "halving"

    def __init__(self, argument, toolkit, seed):
        self.argument = argument

    def propose(self, ledger):
        return None

    def learn(self, row):
        pass


class Source:
    def __init__(self, text, cache, most_bytes):
        self.text = text
"""
METADATA = "Metadata-Version: 2.1\nName: ar-plugin\nVersion: 1.0\n"
ENTRY_POINTS = """\
[autoresearch.policies]
careless = ar_plugin:policy

[autoresearch.pools]
elsewhere = ar_plugin:pool
broken = ar_plugin:nothing_of_that_name

[autoresearch.proposers]
halving = ar_plugin:Proposer

[autoresearch.sources]
poems = ar_plugin:Source
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with entry points, as pip leaves it, in a folder on the path."""
    site = tmp_path / "site"
    info = site / "ar_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "ar_plugin.py").write_text(MODULE)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info / "RECORD").write_text("")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{os.environ.get('PYTHONPATH', '')}")
    return site


@pytest.fixture
def lab(tmp_path):
    return line_lab(tmp_path / "lab")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes config.toml where it is looked for."""
    home = tmp_path / "configuration"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))

    def write(text):
        path = home / "autoresearch" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


# -- plugins ---------------------------------------------------------------------------


def test_a_policy_of_another_package_is_found_by_name(installed):
    policy = policy_registry.load_policy(
        "careless", lower_is_better=True, gain_per_20_added_lines=0.0
    )

    assert type(policy).__name__ == "GreedyPolicy"
    assert "careless" in program.policy_names()
    text = '```toml\npolicy = "careless"\n```\n'
    assert program.parse_program(text).policy == "careless"


def test_a_pool_of_another_package_is_found_by_name(installed):
    pool = pool_registry.load_pool("elsewhere", print, (Device(),))

    assert type(pool).__name__ == "InlinePool"
    assert pool.capacity == 1


def test_a_proposer_of_another_package_gets_what_follows_the_colon(installed, lab):
    found = proposer_registry.load_proposers(
        ("halving:twice",), program.Program(), lab.folder, seed=0
    )

    assert found.name == "halving"
    assert found.argument == "twice"


def test_a_source_of_another_package_is_found_by_name(installed, tmp_path):
    source = source_registry.load_source("poems", (), tmp_path, 1000)

    assert source.text == "poems"


def test_new_takes_the_text_of_an_installed_source(installed, tmp_path):
    made = command(tmp_path, "new", "lab", "--text", "poems", "--profile", "demo")
    refused = command(tmp_path, "new", "other", "--text", "prose")

    assert made.returncode == 0, made.stderr
    assert 'TEXT = "poems"' in (tmp_path / "lab" / "prepare.py").read_text()
    assert refused.returncode == 2
    assert "poems" in refused.stderr


def test_a_built_in_name_is_not_replaced_by_a_plugin(installed):
    info = installed / "ar_plugin-1.0.dist-info" / "entry_points.txt"
    info.write_text("[autoresearch.policies]\ngreedy = ar_plugin:Source\n")

    policy = policy_registry.load_policy(
        "greedy", lower_is_better=True, gain_per_20_added_lines=0.0
    )

    assert plugins.plugin_names("policies") == ("greedy",)
    assert type(policy).__name__ == "GreedyPolicy"


def test_an_entry_point_that_leads_nowhere_is_one_clear_sentence(installed):
    with pytest.raises(LabError, match=r"'broken'.*cannot be loaded.*Next: "):
        pool_registry.load_pool("broken", print, (Device(),))


def test_without_plugins_there_are_only_the_built_in_names():
    assert plugins.plugin_names("policies") == ()
    assert program.policy_names() == program.POLICIES


# -- config.toml -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('poool = "local"', "unknown setting 'poool'; the settings are: pool"),
        ("pool = 3", "pool takes a text in quotes"),
        ("pool = ", "is not TOML"),
        ('pool = "slurm"', "unknown pool 'slurm'; the pools are: local"),
    ],
)
@pytest.mark.parametrize("name", ["check", "run"])
def test_a_mistake_in_config_toml_is_one_sentence_and_exit_code_2(
    lab, config, name, text, says
):
    config(f"{text}\n")

    done = command(lab, name)

    assert done.returncode == 2, done.stdout
    assert says in done.stderr
    assert "Next: " in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_runs_go_to_the_pool_that_config_toml_names(lab, config, installed):
    module = installed / "ar_plugin.py"
    module.write_text(
        module.read_text() + "\n\ndef noted(work, devices):\n"
        "    open('pool-was-here', 'w').close()\n"
        "    return InlinePool(work, devices)\n\n\npool = noted\n"
    )
    config('pool = "elsewhere"\n')

    done = command(lab, "run", "--experiments", "0", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["experiment"] == 0
    assert lab.file_path("pool-was-here").exists()


def test_no_config_toml_and_an_empty_one_mean_the_defaults(lab, config):
    assert command(lab, "check").returncode == 0
    config("")
    assert command(lab, "check").returncode == 0


def test_a_config_toml_without_xdg_lies_in_the_home_folder(tmp_path):
    code = "from autoresearch.user_config import config_path; print(config_path())"
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("XDG_CONFIG_HOME", None)

    done = subprocess.run(
        (sys.executable, "-c", code),
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.stdout.strip() == f"{tmp_path}/.config/autoresearch/config.toml"
