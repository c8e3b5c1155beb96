"""Tables and lists of facts in plain text or Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["facts_list", "table"]


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], align: str | None = None, markdown: bool = False
) -> str:
    """Format a table in plain text or Markdown. Floats have four significant digits; None is `-`.

    Args:
        headers: names of the columns.
        rows: one cell for each header in each row.
        align: one letter for each column, `l` or `r` (default: columns of numbers are right-aligned).
        markdown: format as Markdown.

    Returns:
        The table without a final newline.

    Raises:
        ValueError: a row has the wrong number of cells.

    Example:
        >>> print(table(["image", "ms"], [["a.png", 1.25], ["b.png", None]]))
        image    ms
        -----  ----
        a.png  1.25
        b.png     -
        >>> print(table(["image", "ms"], [["a.png", 1.25]], markdown=True))
        | image |   ms |
        | :---- | ---: |
        | a.png | 1.25 |
    """
    data = [list(row) for row in rows]
    if any(len(row) != len(headers) for row in data):
        raise ValueError(f"every row must have {len(headers)} cells, one for each of {list(headers)}")
    if align is None:
        align = "".join("r" if data and all(_numeric(row[i]) for row in data) else "l" for i in range(len(headers)))
    lines = [[str(name) for name in headers], *([_cell(value) for value in row] for row in data)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(headers))]

    def join(line: Sequence[str]) -> str:
        cells = [text.rjust(w) if a == "r" else text.ljust(w) for text, w, a in zip(line, widths, align, strict=True)]
        return f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()

    if markdown:
        rule = ["-" * (w - 1) + ":" if a == "r" else ":" + "-" * (w - 1) for w, a in zip(widths, align, strict=True)]
    else:
        rule = ["-" * w for w in widths]
    return "\n".join(join(line) for line in [lines[0], rule, *lines[1:]])


def facts_list(facts: Mapping[str, str]) -> str:
    """Format named facts, one in a line, with aligned texts.

    Args:
        facts: texts by name.

    Example:
        >>> print(facts_list({"bundle": "mini", "conditions": "auto, haze"}))
        bundle      mini
        conditions  auto, haze
    """
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in facts.items())


def _numeric(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
