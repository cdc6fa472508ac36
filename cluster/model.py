"""What a scenario file may say of the cluster: which provider makes it, of what size, and what is installed on it.

The JSON schema of the format comes from these models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from harness.base.fields import NAME, Duration, Strict

CLUSTER_NAME = r"^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$"
"""What GKE, EKS and AKS all take as the name of a cluster (GKE: 40 characters, some of which are ours)."""
KUBERNETES = r"^\d+\.\d+(\.\d+)?$"
MIG = r"^[1-7]g\.\d+gb(\+me)?$"


# What is installed


class Install(Strict):
    """What goes onto a bare cluster before the services. Versions are those of ``cluster/install/versions.yaml``."""

    mode: Literal["Knative", "Standard"] = Field("Knative", description="KServe's default deployment mode")
    network: Literal["kourier", "istio", "gateway-api"] | None = Field(
        None, description="the networking layer: kourier or istio for Knative, gateway-api or istio for Standard"
    )
    components: tuple[Literal["runtimes", "gpu-operator", "prometheus", "opentelemetry"], ...] = Field(
        ("runtimes",), description="beside KServe and what it needs"
    )
    versions: dict[str, str] = Field(
        default_factory=dict, description="other versions than the pinned ones, such as kserve: v0.21.0"
    )
    charts: Path | None = Field(None, description="a folder with charts and manifests, for clusters without internet")
    images: str | None = Field(
        None, description="a registry that holds a mirror of every image, such as registry.example/mirror"
    )
    within: Duration = Field(600.0, validate_default=False, description="how long one component may take")

    @model_validator(mode="after")
    def _fits(self) -> Install:
        able = {"Knative": ("kourier", "istio"), "Standard": ("gateway-api", "istio")}[self.mode]
        if self.network is not None and self.network not in able:
            raise ValueError(f"expected the network of mode {self.mode} to be {' or '.join(able)}, got {self.network}")
        return self

    @property
    def layer(self) -> str:
        """The networking layer, chosen where the file leaves it open."""
        return self.network or ("kourier" if self.mode == "Knative" else "gateway-api")


class Reach(Strict):
    """How requests get to the cluster's ingress. What is not given is looked for in the cluster."""

    kind: Literal["auto", "load-balancer", "node-port", "port-forward", "address"] = "auto"
    address: str | None = Field(None, pattern=r"^[^\s/:]+:\d+$", description="HOST:PORT, with kind address")
    service: str | None = Field(
        None, pattern=r"^[^/\s]+/[^/\s]+$", description="NAMESPACE/NAME of the ingress' Service, where it is not found"
    )
    tls: bool = Field(False, description="speak TLS to it")
    ca: Path | None = Field(None, description="certificates to trust, where they are not the system's")

    @model_validator(mode="after")
    def _whole(self) -> Reach:
        if (self.kind == "address") != (self.address is not None):
            raise ValueError("expected 'address: HOST:PORT' together with 'kind: address'")
        if self.ca is not None and not self.tls:
            raise ValueError("'ca' is only of use with 'tls: true'")
        return self


class Models(Strict):
    """How the catalog's models get to pods that do not run on this machine."""

    uri: str = Field(
        description="where to put them: s3://, gs://, abfs:// or https://ACCOUNT.blob.core.windows.net/, or pvc://CLAIM",
    )
    service_account: str | None = Field(
        None, pattern=NAME, description="one that is there, with the secrets that KServe's storage initializer needs"
    )
    secret_from: list[str] = Field(
        default_factory=list,
        description="environment variables to copy into a Secret for the storage initializer",
        examples=[["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]],
    )
    minio: bool = Field(False, description="start MinIO in the cluster and put them there, with s3://BUCKET")
    endpoint: str | None = Field(
        None,
        pattern=r"^(https?://)?[^/:\s]+(:[0-9]+)?$",
        description="HOST:PORT of an S3 service that is not AWS, as pods see it; by https, unless it begins with http://",
        examples=["s3.internal:9000", "http://minio.storage:9000"],
    )
    storage: str = Field("5Gi", description="size of the claim, with pvc://")
    storage_class: str | None = None

    @field_validator("uri")
    @classmethod
    def _known(cls, value: str) -> str:
        schemes = ("s3://", "gs://", "abfs://", "https://", "pvc://")
        if not value.startswith(schemes) or not value.partition("://")[2].strip("/"):
            raise ValueError(f"expected a URI that begins with {', '.join(schemes)}, got {value!r}")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one_store(self) -> Models:
        if self.minio and (not self.uri.startswith("s3://") or self.endpoint or self.secret_from):
            raise ValueError("'minio' goes with 'uri: s3://BUCKET', and brings its own endpoint and credentials")
        return self


# Nodes of a cloud


class Nodes(Strict):
    """A pool of equal nodes."""

    type: str = Field(description="the cloud's machine type")
    min: int = Field(1, ge=0, description="the autoscaler's lower bound")
    max: int = Field(1, ge=1, le=100, description="the autoscaler's upper bound")
    spot: bool = Field(False, description="cheaper, and taken away at short notice")
    zones: list[str] = Field(default_factory=list, description="where its nodes may be; the cluster's own by default")
    disk_gb: int = Field(100, ge=10)
    labels: dict[str, str] = Field(default_factory=dict, description="labels of its nodes")
    taints: list[Annotated[str, Field(pattern=r"^[^\s=:]+(=[^\s:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$")]] = (
        Field(default_factory=list, description="KEY=VALUE:EFFECT")
    )
    price_per_hour: float | None = Field(None, gt=0, description="of one node, in the currency of the cost ceiling")

    @model_validator(mode="after")
    def _ordered(self) -> Nodes:
        if self.min > self.max:
            raise ValueError(f"expected min <= max, got min {self.min} and max {self.max}")
        return self


class GpuNodes(Nodes):
    """A pool of nodes with GPUs, tainted as ``taints`` says."""

    accelerator: str | None = Field(
        None, description="GKE: the type, such as nvidia-l4; elsewhere the machine type says it"
    )
    per_node: int = Field(1, ge=1, le=16, description="GPUs of a node")
    mig: str | None = Field(None, pattern=MIG, description="the profile that every GPU is cut into, such as 1g.10gb")
    shared_by: int = Field(1, ge=1, le=48, description="time-slicing: pods that may share a GPU")
    taints: list[Annotated[str, Field(pattern=r"^[^\s=:]+(=[^\s:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$")]] = (
        Field(default_factory=lambda: ["nvidia.com/gpu=present:NoSchedule"], description="KEY=VALUE:EFFECT")
    )

    @property
    def resource(self) -> str:
        """The extended resource that its nodes offer under the GPU Operator; on GKE it is nvidia.com/gpu, cut or
        not."""
        return f"nvidia.com/mig-{self.mig.replace('+', '.')}" if self.mig else "nvidia.com/gpu"


# The providers


class Local(Strict):
    """The embedded cluster on this machine."""

    provider: Literal["local"] = "local"


class _Real(Strict):
    reach: Reach = Field(default_factory=lambda: Reach.model_validate({}))
    models: Models | None = None
    preflight: bool = Field(True, description="first ask whether the cluster can run the scenario, and stop if not")
    registry: str | None = Field(
        None, description="where images that this project builds were pushed to, such as registry.example/servecert"
    )


class Existing(_Real):
    """A cluster that is there already. Nothing of it is taken down but what the run has put there."""

    provider: Literal["existing"]
    kubeconfig: Path | None = Field(None, description="KUBECONFIG or ~/.kube/config where it is not given")
    context: str | None = Field(None, description="the current one where it is not given")
    install: Install | None = Field(None, description="install this first; nothing by default")


class _Made(_Real):
    name: str = Field("default", pattern=CLUSTER_NAME)
    install: Install | None = Field(default_factory=lambda: Install.model_validate({}))
    ttl: Duration = Field(
        4 * 3600.0, validate_default=False, description="after this a run ends, and `cluster down --expired` removes it"
    )


class Kind(_Made):
    """Kubernetes in containers of this machine, by kind. It needs a container engine."""

    provider: Literal["kind"]
    kubernetes: str = Field("1.34.0", pattern=KUBERNETES)
    node_image: str | None = Field(None, description="instead of kindest/node of the version above")
    workers: int = Field(0, ge=0, le=20)
    http_port: int = Field(0, ge=0, le=65535, description="of the ingress on 127.0.0.1; 0 takes a free one")
    load_images: list[str] = Field(
        default_factory=list, description="images of the local engine, or archives (*.tar), to copy into the nodes"
    )

    @property
    def image(self) -> str:
        return self.node_image or f"kindest/node:v{self.kubernetes}"


class _Cloud(_Made):
    provider: str
    kubernetes: str | None = Field(None, pattern=KUBERNETES, description="the cloud's default where it is not given")
    nodes: Nodes
    gpu: GpuNodes | None = None
    labels: dict[Annotated[str, Field(pattern=r"^[a-z][-_a-z0-9]{0,62}$")], str] = Field(
        default_factory=dict, description="labels (tags) of what is created, for the bill"
    )
    cost_ceiling: float | None = Field(
        None,
        gt=0,
        description="refuse to create what could cost more in its ttl; every pool then needs a price_per_hour",
    )
    base_price_per_hour: float = Field(0.0, ge=0, description="what the cluster itself costs, beside its nodes")

    @model_validator(mode="after")
    def _stands(self) -> _Cloud:
        if self.nodes.min < 1:
            raise ValueError("nodes.min must be 1 or more: what the cluster itself needs runs there")
        if self.nodes.spot and self.provider == "aks":
            raise ValueError("nodes.spot: the first pool of an AKS cluster cannot be spot; gpu.spot can")
        return self

    @model_validator(mode="after")
    def _affordable(self) -> _Cloud:
        if self.cost_ceiling is None:
            return self
        without = [name for name, pool in self.pools().items() if pool.price_per_hour is None]
        if without:
            raise ValueError(f"cost_ceiling needs a price_per_hour of {' and '.join(without)}")
        if (cost := self.highest_cost()) is not None and cost > self.cost_ceiling:
            raise ValueError(
                f"could cost {cost:.2f} within its ttl of {self.ttl / 3600:g} h, above the cost_ceiling of"
                f" {self.cost_ceiling:.2f}; lower max or ttl, or raise the ceiling"
            )
        return self

    def pools(self) -> dict[str, Nodes]:
        return {"nodes": self.nodes, **({"gpu": self.gpu} if self.gpu else {})}

    def highest_cost(self) -> float | None:
        """With every pool at its maximum for the whole time to live; None where a price is not known."""
        prices = [(pool.max, pool.price_per_hour) for pool in self.pools().values()]
        if any(price is None for _, price in prices):
            return None
        return (self.base_price_per_hour + sum(count * (price or 0.0) for count, price in prices)) * self.ttl / 3600


class Gke(_Cloud):
    """Google Kubernetes Engine, by gcloud."""

    provider: Literal["gke"]
    project: str = Field(min_length=1)
    location: str = Field(description="a zone (one control plane) or a region")
    network: str | None = None
    subnetwork: str | None = None

    @model_validator(mode="after")
    def _accelerated(self) -> Gke:
        if self.gpu is not None and self.gpu.accelerator is None:
            raise ValueError("gpu.accelerator is required on GKE, such as nvidia-l4")
        if self.install is not None and "gpu-operator" in self.install.components:
            raise ValueError(
                "install.components: GKE has its own driver, device plugin, MIG and sharing; leave gpu-operator out"
            )
        return self


class Eks(_Cloud):
    """Amazon Elastic Kubernetes Service, by eksctl."""

    provider: Literal["eks"]
    region: str
    profile: str | None = Field(None, description="of the AWS credentials file")


class Aks(_Cloud):
    """Azure Kubernetes Service, by az. Everything is put into a resource group of its own."""

    provider: Literal["aks"]
    location: str
    subscription: str | None = None


Made = Kind | Gke | Eks | Aks
PROVIDERS: dict[str, type[Strict]] = {
    "local": Local, "existing": Existing, "kind": Kind, "gke": Gke, "eks": Eks, "aks": Aks
}  # fmt: skip


def _provider_of(value: Any) -> Any:
    return value.get("provider", "local") if isinstance(value, dict) else getattr(value, "provider", None)


ClusterChoice = Annotated[
    Annotated[Local, Tag("local")]
    | Annotated[Existing, Tag("existing")]
    | Annotated[Kind, Tag("kind")]
    | Annotated[Gke, Tag("gke")]
    | Annotated[Eks, Tag("eks")]
    | Annotated[Aks, Tag("aks")],
    Discriminator(_provider_of),
]
