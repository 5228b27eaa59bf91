"""Write files atomically."""

import threading
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}")
    temporary.write_bytes(text.encode())  # UTF-8 in any locale
    temporary.replace(path)
