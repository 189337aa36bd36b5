"""What ONNX Runtime's own profile of a session says of its passes: time in each layer, and memory."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

#: What the nodes of one call or pass did, in order.
Events = list[dict[str, Any]]


def read_calls(path: Path) -> list[Events]:
    """Return the calls of the session recorded in a profile."""
    calls: list[Events] = [[]]
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            calls[-1].append(event)
        elif event["name"] == "model_run":
            calls.append([])
    return calls[:-1]


def layer_ms(events: Events, layers: Collection[str]) -> dict[str, float]:
    """Return the milliseconds one pass spent in the nodes of each layer.

    Nodes that ONNX Runtime makes of several keep the name of one of them, which starts with the layer's; what it
    makes of a layer's bias and of what follows the layer counts for neither.
    """
    found = dict.fromkeys(layers, 0.0)
    for event in events:
        call, _, rest = event["name"].partition("/")
        layer = call.partition("#")[0]
        if rest and layer in found:
            found[layer] += event["dur"] / 1e3
    return found


def working_bytes(events: Events) -> int:
    """Return how many bytes the first pass of a session had allocated at once, beyond those it began with.

    The allocator's peak also counts temporary memory inside kernels, but may date from when the session was made.
    """
    in_use = [int(event["args"]["mem_bytes_in_use"]) for event in events]
    peaks = [int(event["args"]["mem_in_use_peak"]) for event in events]
    return (peaks[-1] if peaks[-1] > peaks[0] else max(in_use)) - min(in_use)
