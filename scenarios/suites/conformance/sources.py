"""The documents that requirements are quoted from, and the registry that the checks enter themselves into."""

from __future__ import annotations

from scenarios.suites.conformance.checks import Registry, Source

REGISTRY = Registry()
check = REGISTRY.check

_REST = "Open Inference Protocol, inference_rest.md"
_GRPC = "Open Inference Protocol, inference_grpc.md"


class OIP_REST:
    health = Source(_REST, "Health/Readiness/Liveness Probes")
    server_metadata = Source(_REST, "Server Metadata")
    server_metadata_error = Source(_REST, "Server Metadata Response JSON Error Object")
    model_metadata = Source(_REST, "Model Metadata")
    model_metadata_error = Source(_REST, "Model Metadata Response JSON Error Object")
    model_ready = Source(_REST, "Model Ready")
    inference = Source(_REST, "Inference")
    request = Source(_REST, "Inference Request JSON Object")
    response = Source(_REST, "Inference Response JSON Object")
    error = Source(_REST, "Inference Response JSON Error Object")
    parameters = Source(_REST, "Parameters")
    data = Source(_REST, "Tensor Data")
    datatypes = Source(_REST, "Tensor Data Types")


class OIP_GRPC:
    health = Source(_GRPC, "Health")
    server_metadata = Source(_GRPC, "Server Metadata")
    model_metadata = Source(_GRPC, "Model Metadata")
    inference = Source(_GRPC, "Inference")
    contents = Source("Open Inference Protocol, open_inference_grpc.proto", "InferTensorContents")
    raw = Source("Open Inference Protocol, open_inference_grpc.proto", "ModelInferRequest.raw_input_contents")
    raw_output = Source("Open Inference Protocol, open_inference_grpc.proto", "ModelInferResponse.raw_output_contents")
    parameter = Source("Open Inference Protocol, open_inference_grpc.proto", "InferParameter")
    status = Source("gRPC, doc/statuscodes.md", "Status codes and their use in gRPC")


class GRPC:
    health = Source("gRPC, doc/health-checking.md", "Service Definition")
    reflection = Source("gRPC, doc/server-reflection.md", "Protocol")


class HTTP:
    semantics = Source("RFC 9110, HTTP Semantics", "15.5 Client Error 4xx")
    methods = Source("RFC 9110, HTTP Semantics", "15.5.6 405 Method Not Allowed")
    framing = Source("RFC 9112, HTTP/1.1", "7.1 Chunked Transfer Coding")
    persistence = Source("RFC 9112, HTTP/1.1", "9.3 Persistence")
    encoding = Source("RFC 9110, HTTP Semantics", "8.4 Content-Encoding")
    json = Source("RFC 8259, JSON", "11 IANA Considerations (application/json)")


class JSON:
    numbers = Source("RFC 8259, JSON", "6 Numbers")


class BINARY:
    _document = "Binary tensor data extension (Triton protocol, extension_binary_data.md)"
    request = Source(_document, "Binary Tensor Request")
    response = Source(_document, "Binary Tensor Response")
    datatypes = Source(_document, "Binary Tensor Request, tensor contents")


class REPOSITORY:
    _document = "Model repository extension (Triton protocol, extension_model_repository.md)"
    index = Source(_document, "Index")
    load = Source(_document, "Load")
    unload = Source(_document, "Unload")
    grpc = Source(_document, "GRPC")


class STATISTICS:
    rest = Source("Statistics extension (Triton protocol, extension_statistics.md)", "Statistics Response JSON Object")


class GENERATE:
    request = Source("Generate extension (Triton protocol, extension_generate.md)", "HTTP/REST, generate")
    stream = Source("Generate extension (Triton protocol, extension_generate.md)", "HTTP/REST, generate_stream")


class PROMETHEUS:
    format = Source("Prometheus, Exposition formats", "Text-based format")
    types = Source("Prometheus, Metric types", "Counter, Histogram")


class OPENAI:
    models = Source("OpenAI API reference", "Models")
    chat = Source("OpenAI API reference", "Chat completions")
    completions = Source("OpenAI API reference", "Completions")
    stream = Source("OpenAI API reference", "Chat completions, streaming")
    errors = Source("OpenAI API reference", "Error codes")


class Operations:
    probes = Source("Kubernetes, Configure Liveness, Readiness and Startup Probes", "Define a liveness HTTP request")
