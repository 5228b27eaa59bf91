"""config.toml: settings of a user or a machine, not of a lab.

It lies in the user's configuration folder ($XDG_CONFIG_HOME/autoresearch, by default
~/.config/autoresearch). Without one every default applies. Settings of the research
belong in program.md.
"""

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from autoresearch.errors import LabError

LARGEST_CONFIG_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class UserConfig:
    """The settings of config.toml."""

    pool: str = "local"  # where runs happen: "local", or the name of a plugin


def config_path() -> Path:
    """Where config.toml is looked for."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home, "autoresearch", "config.toml")


def load_config() -> UserConfig:
    """Load config.toml; LabError says what is wrong with it."""
    path = config_path()
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES:
            raise LabError(f"{path} is larger than 64 kB. Next: shorten it")
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return UserConfig()
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise LabError(f"{path} is not TOML ({error}). Next: correct it") from None
    known = {field.name for field in fields(UserConfig)}
    for name, value in settings.items():
        if name not in known:
            raise LabError(
                f"{path}: unknown setting {name!r}; the settings are: "
                f"{', '.join(sorted(known))}. Next: correct it"
            )
        if not isinstance(value, str):
            raise LabError(f"{path}: {name} takes a text in quotes. Next: correct it")
    return UserConfig(**settings)
