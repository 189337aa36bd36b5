"""The table of all rivals: the fastest first, then those that lose too much, then those that failed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.models.table import markdown

HEADINGS = ("", "speed", "95 %", "within 1 %", "drop", "held out", "divergence", "MiB", "made in", "loaded in")


def table(measured: Sequence[Mapping[str, Any]], made_s: Mapping[str, float], most_drop: float) -> str:
    """Return the Markdown table of the rivals that were measured, the fastest within the limit first.

    Args:
        measured: what ``measure`` printed; those with an error are left out.
        made_s: name -> seconds that quantizing took.
        most_drop: largest allowed loss of accuracy, relative to full precision's.
    """
    running = [each for each in measured if "error" not in each]
    ordered = sorted(running, key=lambda each: (not keeps(each, most_drop), each["ratio"]["value"]))
    return markdown(HEADINGS, (row(each, made_s.get(each["name"]), most_drop) for each in ordered))


def keeps(measured: Mapping[str, Any], most_drop: float) -> bool:
    """Return whether a rival keeps the limit on the data that it was given to keep it."""
    return bool(measured["accuracy_drop"]["evaluation"] <= most_drop)


def row(measured: Mapping[str, Any], made_s: float | None, most_drop: float) -> tuple[str, ...]:
    """Return the cells of one rival."""
    ratio, drop = measured["ratio"], measured["accuracy_drop"]
    return (
        measured["name"],
        f"{1.0 / ratio['value']:.2f}x",
        f"{1.0 / ratio['high']:.2f} to {1.0 / ratio['low']:.2f}",
        "yes" if keeps(measured, most_drop) else "no",
        percent(drop["evaluation"]),
        percent(drop["held_out"]) if "held_out" in drop else "",
        f"{measured['divergence']:.1e}",
        f"{measured['mib']:.1f}" if measured["mib"] else "",
        "" if made_s is None else f"{made_s:.0f} s",
        f"{measured['loaded_s']:.0f} s",
    )


def percent(share: float) -> str:
    """Return a share for people, with its sign."""
    return f"{100.0 * share:+.2f} %"


def failures(measured: Sequence[Mapping[str, Any]], refused: Mapping[str, str]) -> str:
    """Return a Markdown list of the rivals without figures, with their reasons; empty if there are none."""
    reasons = dict(refused) | {each["name"]: each["error"] for each in measured if "error" in each}
    return "\n".join(f"- {name}: {reason}" for name, reason in reasons.items())


def environment(versions: Iterable[Mapping[str, str]], processor: str, threads: int, load: float) -> str:
    """Return a line with the processor, its load before the measurement, the threads, and the versions of libraries."""
    merged = {library: version for some in versions for library, version in some.items()}
    listed = ", ".join(f"{library} {merged[library]}" for library in sorted(merged))
    return f"{processor}, {threads} threads, load {load:.1f}; {listed}."
