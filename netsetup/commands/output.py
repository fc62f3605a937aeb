"""How the commands print: JSON objects that name their schema, and nothing as None."""

import argparse
import json
from typing import Any

RAW = argparse.RawDescriptionHelpFormatter


def print_json(schema: str, **fields: Any) -> None:
    """Print one object; `schema` is its name and version, such as "netsetup.show/1"."""
    print(json.dumps({"schema": schema, **fields}, ensure_ascii=False))


def or_null(value: object) -> str | None:
    """Return `str(value)`, but None for None: unknown is null in JSON."""
    return None if value is None else str(value)
