"""Run by test_reference.py in an environment with tritonclient: every datatype through NVIDIA's client, both ways.

``tritonclient_session.py HTTP_ADDRESS GRPC_ADDRESS MODEL``; prints one line of JSON.
"""

import json
import sys

import ml_dtypes
import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

HTTP, GRPC, MODEL = sys.argv[1:]
VALUES = {
    "BOOL": np.array([[True, False, True, True]]),
    "UINT8": np.array([[0, 1, 254, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 2, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**53 + 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, -1, 0, 127]], np.int8),
    "INT16": np.array([[-32768, -1, 0, 32767]], np.int16),
    "INT32": np.array([[-(2**31), -1, 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), -1, 2**53 + 1, 2**63 - 1]], np.int64),
    "FP16": np.array([[0.0, -1.5, 65504.0, np.inf]], np.float16),
    "BF16": np.array([[0.0, -1.5, 256.0, 3.0]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.1, -1.5, 3.4028235e38, np.nan]], np.float32),
    "FP64": np.array([[0.1, -1.5, 1.7976931348623157e308, 5e-324]], np.float64),
    "BYTES": np.array([["", "snow ☃", "a\nb", "x" * 300]], object),
}


def main() -> None:
    seen = {}
    for module, address in ((tritonclient.http, HTTP), (tritonclient.grpc, GRPC)):
        client = module.InferenceServerClient(address)
        kind = module.__name__.rsplit(".", 1)[1]
        metadata = client.get_model_metadata(MODEL)
        inputs = metadata["inputs"] if kind == "http" else metadata.inputs
        datatypes = [item["datatype"] if kind == "http" else item.datatype for item in inputs]
        sent = []
        for datatype in datatypes:
            values = VALUES[datatype]
            tensor = module.InferInput(f"INPUT_{datatype}", list(values.shape), datatype)
            tensor.set_data_from_numpy(values)
            sent.append(tensor)
        wanted = [module.InferRequestedOutput(f"OUTPUT_{datatype}") for datatype in datatypes]
        result = client.infer(MODEL, sent, outputs=wanted, request_id="triton-1")
        different = []
        for datatype in datatypes:
            came = result.as_numpy(f"OUTPUT_{datatype}")
            expected = VALUES[datatype]
            if datatype == "BYTES":
                same = [item.decode() for item in came.reshape(-1)] == expected.reshape(-1).tolist()
            elif datatype == "BF16":
                same = np.array_equal(np.asarray(came, np.float32), expected.astype(np.float32))
            else:
                same = came.dtype == expected.dtype and came.tobytes() == expected.tobytes()
            if not same:
                different.append(f"{datatype}: {came!r}")
        try:
            client.infer("no-such-model", sent)
            refused = False
        except InferenceServerException:
            refused = True
        response = result.get_response()
        seen[kind] = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model": client.is_model_ready(MODEL),
            "datatypes": len(datatypes),
            "different": different,
            "refused": refused,
            "id": response["id"] if kind == "http" else response.id,
        }
        client.close()
    print(json.dumps(seen))


main()
