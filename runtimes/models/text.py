"""``text.py --out DIR``: the text model of the reference server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    artifacts = arguments.out / "artifacts"
    artifacts.mkdir()

    def tensor(name: str) -> dict[str, object]:
        return {"name": name, "datatype": "BYTES", "shape": [1]}

    description = {
        "platform": "servecert_text",
        "inputs": [tensor("text_input")],
        "outputs": [tensor("text_output")],
    }
    (artifacts / "model.json").write_text(json.dumps(description, indent=1))


if __name__ == "__main__":
    main()
