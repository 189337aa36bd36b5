"""Reproducible safetensors files: equal content gives equal bytes."""

import json
from pathlib import Path


def sort_header(path: Path) -> None:
    """Sort the metadata of a safetensors file in place.

    The library writes them in an order that varies between runs. The file starts with the header's length in
    eight bytes, followed by the header in JSON, which may be padded with spaces.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))
