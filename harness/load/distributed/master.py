"""Locust's master for this engine: ``python -m harness.load.distributed.master HOST PORT``.

Takes a line ``{"stage": DIRECTORY, "limit_s": S}`` on standard input: the directory holds one folder a
worker with its share, and gets what each generator left. Says what happens in lines of JSON. When its input closes, it
tells the workers to end.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.fileobject import FileObject
from locust.env import Environment  # makes the standard library cooperative
from locust.runners import STATE_MISSING

from harness.load.distributed import MESSAGES_VERSION
from harness.load.distributed.locustfile import Generator

READY_S = 30.0
LEAD_NS = 200_000_000
CLOCK_ROUNDS = 10
CLOCK_S = 5.0
TICK_S = 0.02


class StageError(Exception):
    pass


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Master:
    def __init__(self, host: str, port: int) -> None:
        self.environment = Environment(user_classes=[Generator])
        self.runner: Any = self.environment.create_master_runner(host, port)
        for kind in ("ready", "clock", "progress", "file", "done", "failed"):
            self.runner.register_message(f"servecert_{kind}", getattr(self, f"_{kind}"))
        self.stage = 0
        self.folders: dict[str, Path] = {}
        self.ready: set[str] = set()
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        self.offsets: dict[str, tuple[int, int]] = {}
        """Of each worker: the shortest round trip seen, and its clock minus ours as that one tells it."""
        self.users = 0

    def workers(self) -> list[str]:
        return sorted(client.id for client in self.runner.clients.values() if client.state != STATE_MISSING)

    # What the workers tell

    def _mine(self, msg: Any) -> bool:
        return bool(msg.data["stage"] == self.stage and msg.node_id in self.folders)

    def _ready(self, environment: Any, msg: Any, **_: Any) -> None:
        if self._mine(msg):
            self.ready.add(msg.node_id)

    def _clock(self, environment: Any, msg: Any, **_: Any) -> None:
        now = time.monotonic_ns()
        trip = now - msg.data["sent"]
        offset = msg.data["here"] - (msg.data["sent"] + now) // 2
        self.offsets[msg.node_id] = min(self.offsets.get(msg.node_id, (trip, offset)), (trip, offset))

    def _progress(self, environment: Any, msg: Any, **_: Any) -> None:
        if self._mine(msg):
            say(progress=msg.data["progress"], place=list(self.folders).index(msg.node_id))

    def _file(self, environment: Any, msg: Any, **_: Any) -> None:
        if not self._mine(msg):
            return
        folder = self.folders[msg.node_id]
        path = (folder / msg.data["name"]).resolve()
        if not path.is_relative_to(folder.resolve()):  # a worker's word is not to be trusted with our files
            self.failed[msg.node_id] = f"it sent a file for {msg.data['name']!r}, outside of its folder"
            return
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(msg.data["content"])

    def _done(self, environment: Any, msg: Any, **_: Any) -> None:
        if self._mine(msg):
            self.done.add(msg.node_id)

    def _failed(self, environment: Any, msg: Any, **_: Any) -> None:
        if self._mine(msg):
            self.failed[msg.node_id] = msg.data["reason"]

    # A stage

    def run(self, directory: Path, limit_s: float) -> None:
        folders = sorted(directory.iterdir(), key=lambda path: int(path.name))
        chosen = self.workers()[: len(folders)]
        if len(chosen) < len(folders):
            raise StageError(f"{len(folders)} workers were connected, now {len(chosen)} are")
        self.stage += 1
        self.folders = dict(zip(chosen, folders, strict=True))
        self.ready, self.done, self.failed, self.offsets = set(), set(), {}, {}
        for client, folder in self.folders.items():
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            task = {"version": MESSAGES_VERSION, "stage": self.stage, "files": files}
            self.runner.send_message("servecert_stage", task, client)
        if self.users != len(self.workers()):
            self.users = len(self.workers())
            gevent.spawn(self.runner.start, self.users, self.users)
        self._wait(lambda: len(self.ready) == len(self.folders), READY_S, "get ready")
        self._compare_clocks()
        start_ns = time.monotonic_ns() + LEAD_NS
        for client in self.folders:
            self.runner.send_message("servecert_start", {"start_ns": start_ns + self.offsets[client][1]}, client)
        self._wait(lambda: len(self.done) == len(self.folders), limit_s, "end")
        say(done=True, start_ns=start_ns)

    def _compare_clocks(self) -> None:
        """Each machine has its own clock; the start must be one moment on all of them."""
        for _ in range(CLOCK_ROUNDS):
            for client in self.folders:
                self.runner.send_message("servecert_clock", {"sent": time.monotonic_ns()}, client)
            gevent.sleep(TICK_S)
        self._wait(lambda: len(self.offsets) == len(self.folders), CLOCK_S, "tell their time")

    def _wait(self, condition: Any, limit_s: float, what: str) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            if self.failed:
                client, reason = next(iter(self.failed.items()))
                raise StageError(f"worker {client}: {reason}")
            if lost := set(self.folders) - set(self.workers()):
                raise StageError(f"worker {min(lost)} was lost during the stage")
            if time.monotonic() > end:
                raise StageError(f"the workers did not {what} within {limit_s:g} s")
            gevent.sleep(TICK_S)

    def quit(self) -> None:
        self.runner.send_message("servecert_abandon")
        self.runner.quit()


def count_workers(master: Master) -> None:
    said = -1
    while True:
        if (count := len(master.workers())) != said:
            said = count
            say(workers=count)
        gevent.sleep(TICK_S)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle: it closes standard input
    logging.basicConfig(level=logging.WARNING)
    master = Master(sys.argv[1], int(sys.argv[2]))
    say(listening=master.runner.server.port)
    gevent.spawn(count_workers, master)
    orders = FileObject(os.dup(0), "rb")
    stage = None
    for line in orders:
        order = json.loads(line)

        def carry_out(order: dict[str, Any] = order) -> None:
            try:
                master.run(Path(order["stage"]), order["limit_s"])
            except Exception as error:
                say(failed=str(error))

        stage = gevent.spawn(carry_out)
    if stage is not None:
        stage.kill()
    master.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
