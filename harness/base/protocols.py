"""The ways in which servers are asked, as scenario files and command lines name them."""

from __future__ import annotations

from typing import Literal

Unary = Literal["rest", "binary", "grpc"]
"""One answer a request, over the Open Inference Protocol."""
Protocol = Literal["rest", "binary", "grpc", "grpc-stream", "openai"]
"""All that load can be sent by."""
Profile = Literal["rest", "binary", "grpc", "repository", "statistics", "openai", "generate", "metrics"]
"""What the conformance suite checks, part by part; what a runtime says that it speaks."""
