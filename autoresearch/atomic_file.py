"""Write a file whole or not at all."""

import threading
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new, never a part."""
    beside = path.with_name(f".{path.name}.{threading.get_native_id()}")
    beside.write_bytes(text.encode())  # UTF-8 wherever the machine stands
    beside.replace(path)
