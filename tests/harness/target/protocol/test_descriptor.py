from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from tests.helpers import ROOT

PLACES = (ROOT / "harness" / "target" / "protocol", ROOT / "runtimes" / "reference")


@pytest.mark.parametrize("place", PLACES, ids=["client", "server"])
def test_compiled_descriptor_is_that_of_the_proto_beside_it(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "fresh.binpb"
    arguments = ["protoc", f"-I{place}", f"--descriptor_set_out={out}", str(place / "open_inference.proto")]
    assert protoc.main(arguments) == 0
    fresh = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    kept = descriptor_pb2.FileDescriptorSet.FromString((place / "open_inference.binpb").read_bytes())
    assert fresh.file[0].message_type == kept.file[0].message_type
    assert fresh.file[0].service == kept.file[0].service


def test_client_and_server_share_the_definition_and_not_the_code() -> None:
    assert (PLACES[0] / "open_inference.proto").read_text() == (PLACES[1] / "open_inference.proto").read_text()
    for path in PLACES[1].glob("*.py"):
        assert "harness" not in path.read_text(), "the reference server must not agree with our client on a mistake"
