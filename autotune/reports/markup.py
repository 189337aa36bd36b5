"""HTML from text that nobody vouches for: everything that is put into a page is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(content: str) -> Html:
    """Return ``content`` as HTML: escaped, unless it is HTML already."""
    return content if isinstance(content, Html) else Html(escape(content))


def tag(name: str, *content: str, **attributes: object) -> Html:
    """Return an element; ``class_`` stands for ``class``, and underscores in attributes for hyphens."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """Return parts one after the other."""
    return Html(html(between).join(html(part) for part in parts))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> Html:
    """Return a table that scrolls by itself where it is too wide; ``numbers`` aligns all but the first column right."""

    def cells(kind: str, values: Sequence[str]) -> Html:
        right: dict[str, object] = {"class_": "number"} if numbers else {}
        return tag("tr", *(tag(kind, value, **(right if column else {})) for column, value in enumerate(values)))

    head = tag("thead", cells("th", headings)) if headings else Html("")
    body = tag("tbody", *(cells("td", row) for row in rows))
    return tag("div", tag("table", head, body), class_="wide")
