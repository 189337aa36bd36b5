"""Formats numbers, times and names for people, and escapes text from the database."""

import html
import math
import re
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from autotune.jobs.records import JobState
from autotune.metrics.catalog import METRICS, Constraint
from workers.measurement import FailureCause
from workers.timing.estimates import Figure

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_LONGEST = 120

#: Placeholder for a missing value.
ABSENT = "-"

#: Symbol shown with the word, so that the state never depends on colour.
_SYMBOLS = {
    JobState.QUEUED: "○",
    JobState.RUNNING: "▶",
    JobState.PAUSED: "‖",
    JobState.FINISHED: "✓",
    JobState.CANCELLED: "⊘",
    JobState.FAILED: "✕",
}

_CAUSES = {
    FailureCause.ERROR: "raised an error",
    FailureCause.CRASH: "its worker died",
    FailureCause.OUT_OF_MEMORY: "ran out of memory",
    FailureCause.TIMEOUT: "timed out",
}


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Return ``text`` without line breaks and control characters, cut to ``longest`` characters."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def in_markdown(text: str, longest: int = _LONGEST) -> str:
    """Escape ``text`` so that Markdown shows it literally (CommonMark, section 2.4: backslash escapes)."""
    return _PUNCTUATION.sub(r"\\\1", one_line(text, longest))


def in_chart(text: str, longest: int = _LONGEST) -> str:
    """Escape ``text`` so that Plotly's labels and hovers, which interpret some HTML, show it literally."""
    return html.escape(one_line(text, longest), quote=False)  # Plotly would show &quot; literally


def state_text(state: JobState) -> str:
    """Return the state as a symbol and a word."""
    return f"{_SYMBOLS[state]} {state.value}"


def cause_text(cause: FailureCause) -> str:
    """Return why a candidate failed, as a phrase."""
    return _CAUSES[cause]


def value_text(metric: str, value: float) -> str:
    """Format a metric's value with its unit and its significant digits."""
    return METRICS[metric].text_with_unit(value)


def change_text(value: float, reference: float) -> str:
    """Format the difference of ``value`` from ``reference`` in percent, with its sign."""
    return f"{100 * (value / reference - 1):+.1f} %" if reference else ABSENT


def points_text(difference: float) -> str:
    """Format the difference of two shares in percentage points; a percentage of a percentage misleads."""
    return f"{100 * difference:+.2f} points"


def times_text(value: float, reference: float) -> str:
    """Format ``value`` as a multiple of ``reference``, for metrics that are compared by ratios."""
    return f"{value / reference:.3g}x" if reference else ABSENT


def drop_text(drop: float) -> str:
    """Format a relative drop of accuracy as the change of accuracy, in percent with its sign."""
    return f"{0.0 - 100 * drop:+.2f} %"  # never a negative zero


def speedup_text(ratio: float) -> str:
    """Format a latency relative to full precision as how many times as fast it is."""
    return f"{1 / ratio:.2f}x"


def figure_text(metric: str, figure: Figure | None) -> str:
    """Format a figure with its unit; a dash if it was not measured."""
    return ABSENT if figure is None else value_text(metric, figure.value)


def interval_text(metric: str, figure: Figure) -> str:
    """Format the 95 % confidence interval of a figure; empty if it has none."""
    if figure.low is None or figure.high is None:
        return ""
    low, high = (value_text(metric, end) for end in METRICS[metric].shown_order(figure.low, figure.high))
    return f"{low.split()[0]} to {high}"


def constraint_text(constraint: Constraint) -> str:
    """Return a limit in words, such as ``latency p95 at most 12 ms``."""
    return (
        f"{label_in_sentence(constraint.metric)} {constraint.bound} {value_text(constraint.metric, constraint.limit)}"
    )


def label_in_sentence(metric: str) -> str:
    """Return a metric's name for use inside a sentence."""
    label = METRICS[metric].label.partition(",")[0]
    return label[0].lower() + label[1:]


def axis_title(metric: str) -> str:
    """Return the title of an axis that shows ``metric``."""
    entry = METRICS[metric]
    better = "higher is better" if entry.maximise else "lower is better"
    return f"{entry.label} ({entry.unit}, {better})" if entry.unit else f"{entry.label} ({better})"


def bytes_text(count: float) -> str:
    """Format a number of bytes in KiB or MiB."""
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.2f} MiB"


def duration(seconds: float) -> str:
    """Format a length of time in its largest sensible unit."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} days"


def moment(at: datetime, zone: str | None) -> str:
    """Format a time in the reader's time zone, with the zone's name; in UTC if the zone is unknown."""
    try:
        local = at.astimezone(ZoneInfo(zone or "UTC"))
    except (ZoneInfoNotFoundError, ValueError):
        local = at.astimezone(ZoneInfo("UTC"))
    return f"{local.day} {local:%b %Y, %H:%M %Z}"


def clipped_text(share: float) -> str:
    """Return ``, which clips 0.01 % of the values``; empty if the share is unknown."""
    return "" if math.isnan(share) else f", which clips {100 * share:.2g} % of the values"
