"""Safetensors files that are equal byte for byte when their content is."""

import json
from pathlib import Path


def sort_header(path: Path) -> None:
    """Write the metadata of a safetensors file in sorted order, in place.

    The library writes them in an order that changes from run to run. The file starts with the header's length in
    eight bytes, then the header in JSON, which spaces may follow.
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
