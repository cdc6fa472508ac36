"""A service of a scenario, and another version of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from harness.base.fields import Duration, Strict


class Service(Strict):
    """One InferenceService: a runtime and a model of the catalog, or a whole manifest."""

    runtime: str | None = Field(None, description="a runtime of the catalog, NAME or NAME@VERSION")
    model: str | None = Field(None, description="a model of the catalog")
    predictor: dict[str, Any] = Field(
        default_factory=dict, description="fields of spec.predictor, passed through unchanged (minReplicas, timeout, …)"
    )
    annotations: dict[str, str] = Field(default_factory=dict, description="of the InferenceService itself")
    faults: list[str] = Field(
        default_factory=list,
        description="what the embedded cluster does wrong on purpose, such as slow-load=3s",
    )
    manifest: dict[str, Any] | None = Field(None, description="a whole InferenceService, instead of runtime and model")
    expose: Literal["http", "grpc"] = Field(
        "http", description="the port that Knative routes to: it has one a service; with grpc it speaks h2c"
    )
    served_model: str | None = Field(
        None, description="the model's name in URLs, where it is not the service's (with manifest)"
    )
    ready_within: Duration = Field(300.0, validate_default=False, description="how long it may take to become ready")

    @model_validator(mode="after")
    def _one_way(self) -> Service:
        own_model = "storageUri" in (self.predictor.get("model") or {})
        if self.manifest is None and (self.runtime is None or (self.model is None and not own_model)):
            raise ValueError("expected either 'runtime' and 'model' (or predictor.model.storageUri), or 'manifest'")
        if self.manifest is not None and self.expose == "grpc":
            raise ValueError("'expose' cannot be given beside 'manifest': write the port into the manifest")
        if self.manifest is not None and self.predictor:
            raise ValueError("'predictor' cannot be given beside 'manifest': write the fields into the manifest")
        return self


class Variant(Strict):
    """Another version of a service: what is not given stays as the service has it."""

    runtime: str | None = Field(None, description="a runtime of the catalog, NAME or NAME@VERSION")
    model: str | None = Field(None, description="a model of the catalog")
    predictor: dict[str, Any] = Field(
        default_factory=dict, description="fields of spec.predictor, merged into those of the service"
    )

    @model_validator(mode="after")
    def _differs(self) -> Variant:
        if self.runtime is None and self.model is None and not self.predictor:
            raise ValueError("expected a 'runtime', a 'model' or fields of a 'predictor' that are not the service's")
        return self
