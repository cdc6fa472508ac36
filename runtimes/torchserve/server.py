"""TorchServe with its Open Inference Protocol on one model directory.

Writes an unpacked archive and a configuration, and runs the frontend (Java) in the foreground.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

PR_SET_PDEATHSIG = 1


def archive(store, name, directory):
    place = store / name
    (place / "MAR-INF").mkdir(parents=True)
    manifest = {
        "createdOn": "01/01/2024 00:00:00",
        "runtime": "python",
        "model": {"modelName": name, "handler": "handler.py", "modelVersion": "1.0"},
        "archiverVersion": "0.12.0",
    }
    (place / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    shutil.copy(Path(__file__).with_name("handler.py"), place / "handler.py")
    for file in ("model.pt", "model.json"):
        (place / file).symlink_to(directory / file)


def configuration(root, arguments):
    models = {
        arguments.model_name: {
            "1.0": {
                "defaultVersion": True,
                "marName": arguments.model_name,
                "minWorkers": 1,
                "maxWorkers": 1,
                "batchSize": 1,
                "maxBatchDelay": 1,
                "responseTimeout": 60,
            }
        }
    }
    snapshot = {"name": "startup.cfg", "modelCount": 1, "models": models}
    return "\n".join(
        [
            f"inference_address=http://{arguments.host}:{arguments.http_port}",
            f"management_address=http://{arguments.host}:{arguments.management_port}",
            f"metrics_address=http://{arguments.host}:{arguments.metrics_port}",
            f"grpc_inference_address={arguments.host}",
            f"grpc_inference_port={arguments.grpc_port}",
            f"grpc_management_address={arguments.host}",
            f"grpc_management_port={arguments.grpc_management_port}",
            f"model_store={root / 'store'}",
            f"model_snapshot={json.dumps(snapshot)}",
            "service_envelope=kservev2",
            "disable_token_authorization=true",
            "enable_metrics_api=true",
            "metrics_mode=prometheus",
            "install_py_dep_per_model=false",
            "max_request_size=67108864",
            "max_response_size=67108864",
            "",
        ]
    )


def free_ports(count, host):
    """Of what TorchServe cannot do without and nobody asks for here."""
    import socket

    sockets = [socket.create_server((host, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main():
    parser = argparse.ArgumentParser()
    for name in ("model_name", "model_dir", "host", "http_port", "grpc_port", "metrics_port"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    java = shutil.which("java")
    if java is None:
        print("torchserve: needs Java 17 (Debian: openjdk-17-jre-headless); no java was found", file=sys.stderr)
        return 1
    arguments.management_port, arguments.grpc_management_port = free_ports(2, arguments.host)
    package = Path(importlib.util.find_spec("ts").origin).parent
    # Workers listen on sockets below it, whose paths must be short: not where TMPDIR points to.
    with tempfile.TemporaryDirectory(prefix="torchserve-", dir="/tmp") as directory:
        root = Path(directory)
        archive(root / "store", arguments.model_name, Path(arguments.model_dir))
        (root / "config.properties").write_text(configuration(root, arguments))
        command = [
            java,
            f"-Dmodel_server_home={package.parent}",
            f"-Djava.io.tmpdir={root}",
            "-Xmx1g",
            "-cp",
            str(package / "frontend" / "model-server.jar"),
            "org.pytorch.serve.ModelServer",
            "--python",
            sys.executable,
            "-f",
            str(root / "config.properties"),
            "-s",
            str(root / "store"),
            "-ncs",
        ]
        environment = {
            **os.environ,
            "TS_OPEN_INFERENCE_PROTOCOL": "oip",
            "TS_CONFIG_FILE": str(root / "config.properties"),
            "LOG_LOCATION": str(root / "logs"),
            "METRICS_LOCATION": str(root / "logs"),
            "TEMP": str(root),
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        }
        libc = ctypes.CDLL(None)
        process = subprocess.Popen(
            command, env=environment, cwd=root, preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: process.send_signal(number))
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
