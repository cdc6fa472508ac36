"""``python -m runtimes.reference --model NAME=DIRECTORY --http-port P --grpc-port Q``.

Prints one line when it listens. SIGTERM drains: not ready first, requests in flight are finished, then exit 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import uvicorn

from runtimes.reference.grpc_service import GrpcService
from runtimes.reference.metrics import Metrics
from runtimes.reference.repository import Repository
from runtimes.reference.rest import RestService

VERSION = "1.0.0"
MAX_MESSAGE_BYTES = 256 << 20


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(arguments: argparse.Namespace) -> int:
    repository = Repository(version=arguments.model_version, work_s=arguments.work_ms / 1000)
    for item in arguments.model:
        name, _, directory = item.partition("=")
        try:
            repository.add(name, Path(directory))
        except (OSError, ValueError, KeyError) as error:
            print(f"reference: model {name!r} in {directory}: {error}", file=sys.stderr)
            return 1
    metrics = Metrics()
    rest = RestService(repository, metrics, VERSION)
    service = GrpcService(repository, metrics, VERSION)
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),
    ]
    grpc_server = grpc.aio.server(options=options)
    grpc_server.add_generic_rpc_handlers((service.handlers(),))
    grpc_port = grpc_server.add_insecure_port(f"{arguments.host}:{arguments.grpc_port}")
    await grpc_server.start()
    config = uvicorn.Config(
        rest.app(),
        host=arguments.host,
        port=arguments.http_port,
        log_level="warning",
        access_log=False,
        headers=[(arguments.version_header, arguments.model_version)] if arguments.version_header else None,
        timeout_graceful_shutdown=arguments.drain_seconds,
    )
    server = _Server(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    if not server.started:
        await grpc_server.stop(0)
        return 1
    http_port = server.servers[0].sockets[0].getsockname()[1]
    print(f"reference {VERSION} listens on {arguments.host}: http {http_port}, grpc {grpc_port}", flush=True)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
    rest.draining = service.draining = True
    server.should_exit = True
    await asyncio.gather(grpc_server.stop(arguments.drain_seconds), serving)
    stopping.cancel()
    print("reference: drained", flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reference")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=DIRECTORY")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--http-port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--grpc-port", type=int, default=8081, help="0 takes a free one")
    parser.add_argument("--drain-seconds", type=int, default=25)
    parser.add_argument("--model-version", default="1", help="what answers say is the model's version")
    parser.add_argument("--version-header", default="", metavar="NAME", help="a response header that says it as well")
    parser.add_argument("--work-ms", type=float, default=0.0, help="how much longer each inference takes")
    return parser


def main() -> int:
    return asyncio.run(serve(parser().parse_args()))


if __name__ == "__main__":
    sys.exit(main())
