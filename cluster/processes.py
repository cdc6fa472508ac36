"""Telling a process from a later one with the same number."""

from __future__ import annotations

from pathlib import Path


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot: unlike a time of day, no clock step changes it.

    Source: proc_pid_stat(5), field 22. -1 where there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    return int(stat[stat.rindex(")") + 2 :].split()[19])  # the name before it may hold anything


def boot_id() -> str:
    """Changes when the machine starts anew; numbers of processes mean nothing across that."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
