"""What docs/ prints from the code; `python -m tests.support.pages` writes it anew."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qmigrate.core.handover import DESTINATION, SOURCE, Row, Write

PAGE = Path(__file__).parents[2] / "docs/handover.md"


def diagram() -> str:
    """Return both tables as text, a line a transition: `state --event--> state: effects`."""
    lines = []
    for title, table in (("source", SOURCE), ("destination", DESTINATION)):
        lines.append(f"{title}:")
        for state, row in table.items():
            for event, (following, effects) in row.items():
                words = ", ".join(
                    f"record {e.record}" if isinstance(e, Write) else str(e) for e in effects
                )
                lines.append(f"  {state} --{event}--> {following}: {words or '-'}")
    return "\n".join(lines)


def picture(table: Mapping[Any, Row], name: str) -> str:
    """Return a table as a Mermaid state diagram; events that change no state are left out."""
    rows = {str(state): row for state, row in table.items()}
    edges: dict[tuple[str, str], list[str]] = {}
    for state, row in rows.items():
        for event, (following, _) in row.items():
            if str(following) != state:
                edges.setdefault((state, str(following)), []).append(str(event))
    first = next(iter(rows))
    lines = ["stateDiagram-v2", f"    %% {name}", f"    [*] --> {first}"]
    for (state, following), events in edges.items():
        lines.append(f"    {state} --> {following}: {' / '.join(events)}")
    lines += [f"    {state} --> [*]" for state in ("ended", "done", "returned") if state in rows]
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """Return the page with every generated part as the code has it now."""
    parts = {
        "source": f"```mermaid\n{picture(SOURCE, 'source')}\n```",
        "destination": f"```mermaid\n{picture(DESTINATION, 'destination')}\n```",
        "table": f"```text\n{diagram()}\n```",
    }
    for name, part in parts.items():
        marks = rf"(<!-- {name}: generated -->\n).*?(\n<!-- end -->)"
        found = re.search(marks, text, re.S)
        if not found:
            raise ValueError(f"{PAGE.name} has no place for {name}")
        text = text[: found.end(1)] + part + text[found.start(2) :]
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
