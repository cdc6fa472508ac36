"""A Locust worker that waits for one master after the other: ``servecert worker``."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness.load.distributed import PARENT_VARIABLE, Address

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
EARLY_S = 2.0
PAUSE_S = 0.5


def serve(address: Address, once: bool) -> int:
    """The exit code; ends with the first master that ends, when asked for, and with Ctrl-C."""
    if importlib.util.find_spec("locust") is None:
        print("a load worker needs Locust: pip install 'servecert[locust]'", file=sys.stderr)
        return 2
    where = f"locust://{address.host}:{address.port}"
    print(f"sending load for {where} whenever a master is there; Ctrl-C ends this", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker", "--loglevel", "WARNING"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    command += ["--master-host", address.host, "--master-port", str(address.port)]
    while True:
        started = time.monotonic()
        with subprocess.Popen(command, env=environment) as process:
            code = _wait(process)
        if code is None:
            return 130
        if once or (code and time.monotonic() - started < EARLY_S):
            return code
        time.sleep(PAUSE_S)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """None where the user, or whoever ends processes, wants an end."""
    try:
        return process.wait()
    except BaseException as error:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        if isinstance(error, KeyboardInterrupt):
            return None
        raise
