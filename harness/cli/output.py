"""Results for machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness.base.files import write_atomic


def emit_json(target: str, data: Any) -> None:
    """To a file, or to standard output for ``-``. Raises RunStoreError."""
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomic(Path(target), text)
