"""``confined.py HOST SCRIPT [ARGUMENT…]`` runs a KServe Python server that listens on HOST only.

``kserve.ModelServer`` binds 0.0.0.0 (REST) and [::] (gRPC) without a way to say otherwise; a container's network
namespace contains that, a plain process has none. So the two places where it binds are given the wanted address.
"""

import runpy
import sys

import grpc
import uvicorn

HOST, SCRIPT = sys.argv[1], sys.argv[2]
EVERYWHERE = ("0.0.0.0", "::", "[::]", "")  # noqa: S104 - these are what is replaced

_config = uvicorn.Config.__init__
_server = grpc.aio._server.Server  # grpc.aio.Server is only its interface
_add_port = _server.add_insecure_port


def config(self, app, host="127.0.0.1", *args, **kwargs):
    _config(self, app, HOST if host in EVERYWHERE else host, *args, **kwargs)


def add_port(self, address):
    host, _, port = address.rpartition(":")
    return _add_port(self, f"{HOST}:{port}" if host in EVERYWHERE else address)


uvicorn.Config.__init__ = config
_server.add_insecure_port = add_port
sys.argv = sys.argv[2:]
runpy.run_path(SCRIPT, run_name="__main__")
