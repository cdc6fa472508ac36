"""Protobuf messages of the service, built from the compiled descriptor into a pool of their own.

A private pool keeps this module usable beside any other package that registers the same ``inference`` messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _load(path: Path) -> dict[str, Any]:
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return dict(message_factory.GetMessageClassesForFiles([file.name for file in files.file], pool))


MESSAGES: dict[str, Any] = {
    name.removeprefix("inference."): cls
    for name, cls in _load(Path(__file__).with_name("open_inference.binpb")).items()
}
SERVICE = "inference.GRPCInferenceService"
