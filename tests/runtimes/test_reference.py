"""The reference server under clients that nobody here wrote, and through its own life."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from harness.target.protocol.grpc_client import GrpcClient
from harness.target.protocol.rest import RestClient, binary_request
from harness.target.protocol.tensors import DTYPES, TensorSpec, example_tensor, from_raw, same, to_raw
from harness.target.protocol.transcript import recording
from runtimes.catalog import BuiltModel, find_runtime
from runtimes.environments import build_environment
from tests.helpers import Reference, reference_server, tool

HERE = Path(__file__).resolve().parent

KSERVE_SESSION = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
http, grpc, model = sys.argv[1:]
VALUES = {
    "BOOL": np.array([[True, False, True, True]]), "UINT8": np.array([[0, 1, 254, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 2, 65535]], np.uint16), "UINT32": np.array([[0, 1, 2, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**53 + 1, 2**64 - 1]], np.uint64), "INT8": np.array([[-128, -1, 0, 127]], np.int8),
    "INT16": np.array([[-32768, -1, 0, 32767]], np.int16), "INT32": np.array([[-2**31, -1, 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-2**63, -1, 2**53 + 1, 2**63 - 1]], np.int64),
    "FP32": np.array([[0.1, -1.5, 3.4028235e38, 1e-45]], np.float32),
    "FP64": np.array([[0.1, -1.5, 1.7976931348623157e308, 5e-324]], np.float64),
    "BYTES": np.array([["", "snow", "a", "x"]], object),
}
async def main():
    seen = {}
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    rpc = InferenceGRPCClient(url=grpc)
    for kind in ("rest", "grpc"):
        inputs = []
        for datatype, values in VALUES.items():
            tensor = InferInput(name=f"INPUT_{datatype}", shape=list(values.shape), datatype=datatype)
            # KServe's REST client writes BYTES as JSON strings, its gRPC client sends raw elements.
            tensor.set_data_from_numpy(values, binary_data=kind == "grpc")
            inputs.append(tensor)
        request = InferRequest(model_name=model, infer_inputs=inputs, request_id="k-1")
        if kind == "rest":
            response = await rest.infer(http, request, model_name=model)
        else:
            response = await rpc.infer(request)
        different = []
        for output in response.outputs:
            datatype = output.name.removeprefix("OUTPUT_")
            came = output.as_numpy()
            if datatype == "BYTES":
                texts = [item.decode() if isinstance(item, bytes) else item for item in came.reshape(-1)]
                same = texts == VALUES[datatype].reshape(-1).tolist()
            else:
                same = came.tobytes() == VALUES[datatype].astype(came.dtype).tobytes()
            if not same:
                different.append(f"{datatype}: {came!r}")
        seen[kind] = {"id": response.id, "outputs": len(response.outputs), "different": different}
    seen["live"] = await rest.is_server_live(http)
    seen["ready"] = await rpc.is_model_ready(model)
    await rest.close(); await rpc.close()
    print(json.dumps(seen))
asyncio.run(main())
"""


def session(python: Path, script: str | Path, *arguments: str) -> dict[str, Any]:
    command = [str(python), *(["-c", script] if isinstance(script, str) else [str(script)]), *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": ""}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    seen: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def triton_python() -> Path:
    requirements = (HERE / "requirements-tritonclient.txt").read_text()
    return build_environment("tritonclient", requirements) / "bin" / "python"


@pytest.mark.runtime
@pytest.mark.parametrize(("model", "count"), [("identity", 12), ("identity_half", 2)])
def test_tritonclient_round_trips_every_datatype(
    triton_python: Path, model: str, count: int, request: pytest.FixtureRequest
) -> None:
    built: BuiltModel = request.getfixturevalue(model)
    with reference_server(built.artifacts, "m") as server:
        address = f"127.0.0.1:{server.http_port}"
        seen = session(triton_python, HERE / "tritonclient_session.py", address, server.grpc, "m")
    for kind in ("http", "grpc"):
        assert seen[kind] == {
            "live": True,
            "ready": True,
            "model": True,
            "datatypes": count,
            "different": [],
            "refused": True,
            "id": "triton-1",
        }


@pytest.mark.runtime
def test_kserves_inference_clients_round_trip_every_datatype(reference: Reference) -> None:
    python = find_runtime("kserve").python(lambda line: print(line, file=sys.stderr))
    seen = session(python, KSERVE_SESSION, reference.url, reference.grpc, "identity")
    for kind in ("rest", "grpc"):
        assert seen[kind] == {"id": "k-1", "outputs": 12, "different": []}, kind
    assert seen["live"]
    assert seen["ready"]


@pytest.mark.parametrize("datatype", [kind for kind in DTYPES if kind not in ("FP16", "BF16")])
async def test_our_clients_agree_over_rest_binary_and_grpc(reference: Reference, datatype: str) -> None:
    tensors = [
        example_tensor(TensorSpec(f"INPUT_{kind}", kind, (-1, 4)), batch=3, seed=9)
        for kind in DTYPES
        if kind not in ("FP16", "BF16")
    ]
    async with RestClient(reference.url, "identity") as rest, GrpcClient(reference.grpc, "identity") as grpc:
        answers = [
            await rest.infer(tensors),
            await rest.infer_binary(tensors),
            await grpc.infer(tensors),
            await grpc.infer(tensors, raw=True),
        ]
    wanted = next(tensor for tensor in tensors if tensor.datatype == datatype).with_name(f"OUTPUT_{datatype}")
    for answer in answers:
        assert same(answer.output(f"OUTPUT_{datatype}"), wanted)


@pytest.mark.parametrize("datatype", list(DTYPES))
def test_raw_bytes_round_trip(datatype: str) -> None:
    tensor = example_tensor(TensorSpec("t", datatype, (2, 3)), seed=4)
    raw = to_raw(tensor)
    assert same(from_raw("t", datatype, (2, 3), raw), tensor)
    expected = {"BYTES": None, "BF16": 12, "FP16": 12}.get(datatype, 6 * DTYPES[datatype].itemsize)
    assert expected is None or len(raw) == expected


def test_raw_layout_is_little_endian_and_row_major() -> None:
    tensor = from_raw("t", "UINT16", (2, 2), bytes([1, 0, 2, 0, 3, 0, 4, 1]))
    assert tensor.array.tolist() == [[1, 2], [3, 260]]
    strings = from_raw("t", "BYTES", (2,), b"\x01\0\0\0a\x02\0\0\0bc")
    assert strings.array.tolist() == [b"a", b"bc"]
    half = from_raw("t", "BF16", (1,), b"\x80\x3f")
    assert half.array.astype(np.float64).tolist() == [1.0]


def test_sigterm_finishes_what_is_in_flight(identity: BuiltModel) -> None:
    """Readiness goes first, a request that is still being sent is answered, then the process ends with 0."""
    with reference_server(identity.artifacts) as server:
        started, proceed = threading.Event(), threading.Event()
        tensors = [
            example_tensor(TensorSpec(f"INPUT_{kind}", kind, (-1, 4)))
            for kind in DTYPES
            if kind not in ("FP16", "BF16")
        ]
        from harness.target.protocol.rest import json_body, json_request

        body = json_body(json_request(tensors))
        statuses: list[int] = []

        def parts() -> Any:
            yield body[:100]
            started.set()
            proceed.wait(10)
            yield body[100:]

        def send() -> None:
            statuses.append(
                httpx.post(f"{server.url}/v2/models/identity/infer", content=parts(), timeout=20).status_code
            )

        thread = threading.Thread(target=send)
        thread.start()
        started.wait(5)
        server.process.send_signal(signal.SIGTERM)
        proceed.set()
        thread.join(15)
        assert statuses == [200]
        assert server.process.wait(15) == 0


def test_missing_model_directory_is_named_and_exits_1(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "runtimes.reference",
        "--model",
        f"m={tmp_path}",
        "--http-port",
        "0",
        "--grpc-port",
        "0",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert str(tmp_path) in result.stderr


def test_repository_extension_unloads_and_loads(identity: BuiltModel) -> None:
    with reference_server(identity.artifacts) as server, httpx.Client(base_url=server.url) as http:
        assert http.post("/v2/repository/index").json() == [
            {"name": "identity", "version": "1", "state": "READY", "reason": ""}
        ]
        assert http.post("/v2/repository/models/identity/unload").status_code == 200
        assert http.get("/v2/models/identity/ready").status_code == 503
        assert http.get("/v2/health/ready").status_code == 503
        assert http.post("/v2/repository/models/identity/load").status_code == 200
        assert http.get("/v2/models/identity/ready").status_code == 200


def test_metrics_count_each_request_once(identity: BuiltModel) -> None:
    with reference_server(identity.artifacts) as server, httpx.Client(base_url=server.url) as http:
        for _ in range(3):
            http.post("/v2/models/identity/infer", content=b"{}")
        text = http.get("/metrics").text
    assert 'servecert_inference_requests_total{model="identity",outcome="failure"} 3' in text
    assert 'servecert_inference_duration_seconds_bucket{model="identity",le="+Inf"} 3' in text


async def test_the_curl_line_of_a_binary_request_can_be_pasted(reference: Reference) -> None:
    tool("curl")
    body, length = binary_request(
        [
            example_tensor(TensorSpec(f"INPUT_{kind}", kind, (1, 4)))
            for kind in DTYPES
            if "16" not in kind or "INT" in kind
        ]
    )
    with recording() as exchanges:
        async with RestClient(reference.url, "identity") as client:
            headers = {"Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}
            answer = await client.infer_raw(body, headers)
    assert answer.status == 200
    assert len(body) <= 4000, "short enough to be pasted"
    pasted = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", exchanges[-1].request], capture_output=True, timeout=10, check=True
    )
    assert pasted.stdout.endswith(answer.content)
