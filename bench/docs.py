"""The generated parts of docs/performance.md: tables between markers, charts beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import charts, tables

MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str, found: Mapping[str, str]) -> str:
    """The text with new tables between its markers; where there is no new table, the old one stays.

    Raises:
        ValueError: a table has no place in the text.
    """
    places = {match["name"] for match in MARKED.finditer(text)}
    if homeless := sorted(set(found) - places):
        raise ValueError(f"no place is marked for {', '.join(homeless)}: write <!-- table: NAME --> and <!-- end -->")

    def fill(match: re.Match[str]) -> str:
        body = f"{found[match['name']]}\n" if match["name"] in found else match["body"]
        return f"{match[1]}{body}{match[4]}"

    return MARKED.sub(fill, text)


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """Everything that these results have, into performance.md and images/performance-*.svg."""
    made = {"machine": tables.about(found)}
    for name, part in found["parts"].items():
        made.update(tables.of_part(name, part))
        charts.draw(name, part, folder / "images" / f"performance-{name}.svg")
    page = folder / "performance.md"
    page.write_text(filled(page.read_text(), made))
