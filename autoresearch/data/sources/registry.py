"""The source that prepare.py's TEXT names. Plugins: autoresearch.sources."""

from pathlib import Path

from autoresearch import plugins
from autoresearch.data.sources import Source
from autoresearch.data.sources.files import FileSource
from autoresearch.data.sources.hub import DATASETS, HubSource
from autoresearch.data.sources.python import PythonSource


def load_source(
    text: str, packages: tuple[str, ...], cache: Path, most_bytes: int
) -> Source:
    """Load the source that prepare.py's TEXT names; any other text is a path.

    A plugin's entry point is callable as (text, cache folder, most bytes) -> Source.
    """
    if text == "python":
        return PythonSource(packages)
    if text in DATASETS:
        return HubSource(text, cache / "downloads", most_bytes)
    make = plugins.load_plugin("sources", text)
    if make is not None:
        source: Source = make(text, cache / "downloads", most_bytes)
        return source
    return FileSource(Path(text))
