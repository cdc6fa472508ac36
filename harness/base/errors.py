"""Every error that servecert raises on purpose, in one tree.

    ServecertError            base; carries the exit code of the command line
    ├── UsageError            exit 2: the command line, a file or a value in it is wrong
    │   ├── ScenarioError     a scenario file, with file and line
    │   └── RuntimeSpecError  a runtime.yaml or a runtime/model name that does not exist
    ├── BringUpError          exit 3: a cluster, an image, a runtime or a target could not be brought up or reached
    │   ├── ClusterError      the cluster itself
    │   ├── EnvironmentError_ a runtime's Python environment could not be built
    │   ├── DeployError       an InferenceService never became ready
    │   ├── UnreachableError  a URL given by the user does not answer
    │   └── NotServedError    something answers, and it is not the model that was asked for, or it is not ready
    ├── ProtocolError         an answer that cannot be read as what the protocol says it is
    │   └── RefusedError      an HTTP status that is not 200
    ├── RunStoreError         exit 3: the run directory cannot be written or read
    └── MeasurementError      exit 1: a suite could not measure what it was asked to; never a pass

A message says what was expected, what came, and what to do next; a cause is kept with ``raise ... from``.
"""

from __future__ import annotations

from pathlib import Path

EXIT_PASSED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BRING_UP = 3
EXIT_INTERRUPTED = 130


class ServecertError(Exception):
    exit_code = EXIT_FAILED


class UsageError(ServecertError):
    exit_code = EXIT_USAGE


class ScenarioError(UsageError):
    """One or more mistakes in a scenario file, each as ``(line, message)``; ``line`` is 1-based, 0 if unknown."""

    def __init__(self, path: Path | str, problems: list[tuple[int, str]]) -> None:
        self.path = path
        self.problems = problems
        super().__init__("\n".join(f"{path}:{line}: {text}" for line, text in problems))


class RuntimeSpecError(UsageError):
    pass


class BringUpError(ServecertError):
    exit_code = EXIT_BRING_UP


class ClusterError(BringUpError):
    pass


class EnvironmentError_(BringUpError):
    pass


class DeployError(BringUpError):
    """``logs`` holds the last lines that the failing container printed."""

    def __init__(self, message: str, logs: str = "") -> None:
        self.logs = logs
        super().__init__(message + (f"\nlast log lines:\n{logs}" if logs else ""))


class UnreachableError(BringUpError):
    pass


class NotServedError(BringUpError):
    pass


class ProtocolError(ServecertError):
    pass


class RefusedError(ProtocolError):
    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class RunStoreError(BringUpError):
    pass


class MeasurementError(ServecertError):
    pass
