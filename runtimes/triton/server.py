"""tritonserver (from nvidia-pytriton) on one model directory: a model repository for its Python backend."""

import argparse
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PR_SET_PDEATHSIG = 1


def repository(root, name, directory):
    """The model under the name that was asked for; in a repository that is its folder's."""
    (found,) = directory.glob("*/config.pbtxt")
    shutil.copytree(found.parent, root / "models" / name)
    return root / "models"


def backends(root, server):
    """The Python backend with the stub for this Python beside it, where Triton looks for it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place = root / "backends" / "python"
    place.mkdir(parents=True)
    for path in (server / "backends" / "python").iterdir():
        if path.is_file():
            (place / path.name).symlink_to(path)
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", place)
    return root / "backends"


def main():
    parser = argparse.ArgumentParser()
    for name in ("model_name", "model_dir", "host", "http_port", "grpc_port", "metrics_port"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    package = Path(importlib.util.find_spec("pytriton").origin).parent
    server = package / "tritonserver"
    with tempfile.TemporaryDirectory(prefix="triton-") as directory:
        root = Path(directory)
        command = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={repository(root, arguments.model_name, Path(arguments.model_dir))}",
            f"--backend-directory={backends(root, server)}",
            "--model-control-mode=explicit",
            f"--load-model={arguments.model_name}",
            f"--http-address={arguments.host}",
            f"--grpc-address={arguments.host}",
            f"--metrics-address={arguments.host}",
            f"--http-port={arguments.http_port}",
            f"--grpc-port={arguments.grpc_port}",
            f"--metrics-port={arguments.metrics_port}",
            "--exit-timeout-secs=10",
            "--log-info=false",
        ]
        libraries = [str(package.parent / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).strip(":"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        }
        libc = ctypes.CDLL(None)
        process = subprocess.Popen(
            command, env=environment, preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: process.send_signal(number))
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
