"""NVIDIA GPUs of this machine, as the driver's own tool tells of them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

FIELDS = ("uuid", "name", "memory.total", "driver_version")
WITHIN_S = 20.0
"""The driver wakes GPUs that nobody uses."""


@dataclass(frozen=True)
class Gpu:
    uuid: str
    name: str
    memory_bytes: int
    driver: str


def gpus() -> list[Gpu]:
    """Empty where there is no driver, or it does not answer. Source: nvidia-smi --help-query-gpu."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return _parsed(answer.stdout) if answer.returncode == 0 else []


def _parsed(text: str) -> list[Gpu]:
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == len(FIELDS) and parts[0].startswith(("GPU-", "MIG-")):
            memory = int(parts[2]) << 20 if parts[2].isdigit() else 0  # MiB; [N/A] where the driver does not know
            found.append(Gpu(parts[0], parts[1], memory, parts[3]))
    return found


def describe_gpus() -> list[dict[str, Any]]:
    """For a run's record: names, bytes of memory and the driver's version, without what tells one from its like."""
    return [{key: value for key, value in asdict(item).items() if key != "uuid"} for item in gpus()]
