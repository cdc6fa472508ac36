"""KServe's predictors."""

from __future__ import annotations

FRAMEWORKS = (
    *("sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx"),
    *("huggingface", "pmml", "lightgbm", "paddle"),
)
"""Fields of ``spec.predictor`` that name a model's framework, beside ``model``. Source: KServe's PredictorSpec,
v1beta1."""
