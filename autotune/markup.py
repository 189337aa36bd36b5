"""HTML from untrusted text: these functions escape everything that goes into a page."""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is already HTML."""

    __slots__ = ()


def html(content: str) -> Html:
    """Return ``content`` as HTML, escaped unless it already is HTML."""
    return content if isinstance(content, Html) else Html(escape(content))


def tag(name: str, *content: str, **attributes: object) -> Html:
    """Return an element; ``class_`` means ``class``, and underscores in attribute names become hyphens."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """Return the parts joined by ``between``."""
    return Html(html(between).join(html(part) for part in parts))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> Html:
    """Return a table that scrolls if it is too wide; ``numbers`` right-aligns all but the first column."""

    def cells(kind: str, values: Sequence[str]) -> Html:
        right: dict[str, object] = {"class_": "number"} if numbers else {}
        return tag("tr", *(tag(kind, value, **(right if column else {})) for column, value in enumerate(values)))

    head = tag("thead", cells("th", headings)) if headings else Html("")
    body = tag("tbody", *(cells("td", row) for row in rows))
    return tag("div", tag("table", head, body), class_="wide")
