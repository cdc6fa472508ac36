"""Runs one container's process and makes sure that nothing of it outlives the cluster.

``python -I -S podshim.py CONTROL_FD COMMAND [ARGUMENT…]``. The cluster holds the other end of CONTROL_FD, a pipe: when
it closes, by intent or because the cluster was killed, every descendant is killed at once. SIGTERM goes to the main
process alone, as to a container's PID 1. The exit code is the process's own, or 128 + N after signal N. Only the
standard library, and little of it: this is started for every container.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def children_of(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def kill_descendants() -> None:
    """Orphans are ours (we are their subreaper), so killing children until there are none reaches all of them."""
    me = os.getpid()
    while children := children_of(me):
        for child in children:
            stack = [child]
            while stack:
                pid = stack.pop()
                stack += children_of(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, 0)[0]:
                pass
        except ChildProcessError:
            pass


def main() -> int:
    control = int(sys.argv[1])
    command = sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM) if child else None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = 0
    shim = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != shim:
            os._exit(137)
        os.close(control)
        try:
            os.execvpe(command[0], command, os.environ)  # noqa: S606 - no shell is the point
        except OSError as error:
            os.write(2, f"cannot start {command[0]!r}: {error.strerror}\n".encode())
            os._exit(127)
    while True:
        ready, _, _ = select.select([control, wake_read], [], [])
        if control in ready and not os.read(control, 1):
            kill_descendants()
            return 137
        if wake_read in ready:
            os.read(wake_read, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid, status = child, 0
            if pid == 0:
                break
            if pid == child:
                kill_descendants()
                code = os.waitstatus_to_exitcode(status)
                return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
