"""Time per layer and memory of a session's passes, from ONNX Runtime's own profile."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

#: Profile events of the nodes in one call or pass, in order.
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
    """Return the milliseconds that one pass spent in the nodes of each layer.

    A fused node keeps the name of one of its parts, which starts with the layer's name. A node fused from a layer's
    bias and the operation after the layer counts for no layer.
    """
    found = dict.fromkeys(layers, 0.0)
    for event in events:
        layer = layer_named(event["name"], layers)
        if layer is not None:
            found[layer] += event["dur"] / 1e3
    return found


def layer_named(node: str, layers: Collection[str]) -> str | None:
    """Return the layer that a node's name starts with, or None if it starts with none of ``layers``."""
    call, _, rest = node.partition("/")
    layer = call.partition("#")[0]
    return layer if rest and layer in layers else None


def working_bytes(events: Events) -> int:
    """Return the peak of bytes that the first pass of a session allocated, beyond those in use at its start.

    The allocator's peak includes temporary memory inside kernels, but it may date from the creation of the session.
    """
    in_use = [int(event["args"]["mem_bytes_in_use"]) for event in events]
    peaks = [int(event["args"]["mem_in_use_peak"]) for event in events]
    return (peaks[-1] if peaks[-1] > peaks[0] else max(in_use)) - min(in_use)
