"""Models for pods that do not run on this machine: into object storage or onto a claim, with the Secret and the
ServiceAccount that KServe's storage initializer reads.

Sources: KServe's credential builders (pkg/credentials: keys and annotations of the Secrets), fsspec's file systems.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.commands import Command, require_tools, run
from cluster.install import pinned
from cluster.model import Models
from cluster.reach.forwarding import Forwarding
from cluster.workloads.waiting import await_pods
from harness.base.errors import ClusterError, UsageError
from harness.kubernetes.kube import Kube, collection

Object = dict[str, Any]
Progress = Callable[[str], None]
ACCOUNT = "servecert-models"
LOADER = "servecert-models"
LOADER_SELECTOR = f"app.kubernetes.io/name={LOADER}"
WITHIN_S = 300.0
_EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "abfs": ("adlfs", "azure"), "https": ("adlfs", "azure")}
_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS"


@dataclass(frozen=True)
class Delivered:
    """What goes into the manifest of a service."""

    storage_uri: str
    service_account: str | None


class Delivery:
    """One run's. Every model is put where nothing of another content is, so that runs do not disturb each other."""

    def __init__(self, models: Models, kubeconfig: Path, namespace: str, log: Path, stop: threading.Event) -> None:
        self.models = models
        self.namespace = namespace
        self._kubeconfig = kubeconfig
        self._kube = Kube(kubeconfig)
        self._log = log
        self._stop = stop
        self._lock = threading.Lock()
        self._account: str | None = None
        self._prepared = False
        self._minio: tuple[str, str] | None = None

    def deliver(self, name: str, artifacts: Path, progress: Progress = lambda line: None) -> Delivered:
        """Raises ClusterError or UsageError; to be called from threads."""
        with self._lock:  # one at a time: a loader pod, a forwarded port
            if not self._prepared:
                self._prepare(progress)
                self._prepared = True
            target = f"{self.models.uri}/{name}-{fingerprint(artifacts)}"
            progress(f"delivering {name} to {target}")
            if target.startswith("pvc://"):
                self._copy_to_claim(target, artifacts, progress)
            else:
                self._upload(target, artifacts)
            return Delivered(target, self._account)

    def _prepare(self, progress: Progress) -> None:
        models = self.models
        if models.uri.startswith("pvc://"):
            self._claim(progress)
            return
        if models.minio:
            self._start_minio(progress)
        self._account = models.service_account
        if models.minio or models.secret_from:
            secret = self._secret()
            self.ensure("v1", "secrets", secret)
            account = {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": ACCOUNT, "namespace": self.namespace, "labels": _LABELS},
                "secrets": [{"name": ACCOUNT}],
            }
            self.ensure("v1", "serviceaccounts", account)
            self._account = ACCOUNT

    # Object storage

    def _secret(self) -> Object:
        """Keys as KServe's credential builder for the scheme expects them."""
        annotations: dict[str, str] = {}
        values: dict[str, str] = {}
        if self._minio is not None:
            values = {"AWS_ACCESS_KEY_ID": self._minio[0], "AWS_SECRET_ACCESS_KEY": self._minio[1]}
        for name in self.models.secret_from:
            if name not in os.environ:
                raise UsageError(f"cluster.models.secret_from: the environment variable {name} is not set")
            if name == _GOOGLE:
                try:
                    values["gcloud-application-credentials.json"] = Path(os.environ[name]).read_text()
                except OSError as error:
                    raise UsageError(f"{name}: cannot read {os.environ[name]}: {error.strerror}") from error
            else:
                values[name] = os.environ[name]
        endpoint = "http://minio.minio:9000" if self.models.minio else self.models.endpoint
        if endpoint:
            annotations["serving.kserve.io/s3-endpoint"] = endpoint.rpartition("://")[2]
            annotations["serving.kserve.io/s3-usehttps"] = "0" if endpoint.startswith("http://") else "1"
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": ACCOUNT, "namespace": self.namespace, "annotations": annotations, "labels": _LABELS
            },
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
        }  # fmt: skip

    def _upload(self, target: str, artifacts: Path) -> None:
        parts = urlsplit(target)
        module, extra = _EXTRAS[parts.scheme]
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{parts.scheme}:// needs {module}: pip install 'servecert[{extra}]'")
        import fsspec

        options: Object = {}
        path = target
        if parts.scheme == "https":
            account = (parts.hostname or "").partition(".")[0]
            options, path = {"account_name": account}, f"abfs:/{parts.path}"
        opened = None
        try:
            if self._minio is not None:
                opened = Forwarding(self._kubeconfig, None, "minio", "service/minio", 9000)
                user, password = self._minio
                options = {"key": user, "secret": password, "endpoint_url": f"http://{opened.address}"}
            system, where = fsspec.core.url_to_fs(path, **options)
            if parts.scheme == "s3":
                system.mkdirs(where.split("/")[0], exist_ok=True)
            for file in sorted(artifacts.rglob("*")):
                if file.is_file():
                    system.put_file(str(file), f"{where}/{file.relative_to(artifacts)}")
        except Exception as error:  # each file system has its own kinds
            raise ClusterError(f"could not put the model to {target}: {type(error).__name__}: {error}") from error
        finally:
            if opened is not None:
                opened.close()

    def _start_minio(self, progress: Progress) -> None:
        """An S3 service in the cluster. Its password is drawn once and lies in a Secret of the cluster only."""
        progress("starting MinIO")
        self.ensure("v1", "namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "minio"}})
        found = self._kube.get("v1", "secrets", "minio", "minio")
        if found is None:
            drawn = {"user": secrets.token_hex(8), "password": secrets.token_urlsafe(24)}
            data = {key: base64.b64encode(value.encode()).decode() for key, value in drawn.items()}
            found = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "minio", "namespace": "minio"},
                "data": data,
            }
            self.ensure("v1", "secrets", found)
        user, password = (base64.b64decode(found["data"][key]).decode() for key in ("user", "password"))
        self._minio = user, password
        deployment, service = minio_objects()
        self.ensure("apps/v1", "deployments", deployment)
        self.ensure("v1", "services", service)
        await_pods(self._kube, "minio", "app=minio", 1, "MinIO", within_s=WITHIN_S, stop=self._stop, progress=progress)

    # A claim

    def _claim(self, progress: Progress) -> None:
        name = self.models.uri.removeprefix("pvc://").partition("/")[0]
        spec: Object = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": self.models.storage}},
        }
        if self.models.storage_class:
            spec["storageClassName"] = self.models.storage_class
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": self.namespace, "labels": _LABELS},
            "spec": spec,
        }
        if self._kube.get("v1", "persistentvolumeclaims", name, self.namespace) is None:
            self.ensure("v1", "persistentvolumeclaims", claim)

    def _copy_to_claim(self, target: str, artifacts: Path, progress: Progress) -> None:
        """Through a pod that mounts the claim, which is gone afterwards."""
        claim, _, path = target.removeprefix("pvc://").partition("/")
        base = ("kubectl", "--kubeconfig", str(self._kubeconfig), "--namespace", self.namespace)
        start = Command((*base, "apply", "-f", "-"), "start a pod that mounts the claim", stdin=loader(claim))
        copy = [
            Command((*base, "exec", LOADER, "--", "mkdir", "-p", f"/models/{path}"), "make the model's folder"),
            Command((*base, "cp", f"{artifacts}/.", f"{LOADER}:/models/{path}"), "copy the model", attempts=2),
        ]
        require_tools([start, *copy])
        try:
            run(start, self._log, self._stop)
            await_pods(
                self._kube, self.namespace, LOADER_SELECTOR, 1, f"the pod that mounts claim {claim}",
                within_s=WITHIN_S, stop=self._stop, progress=progress,
            )  # fmt: skip
            for command in copy:
                run(command, self._log, self._stop)
        finally:
            gone = (*base, "delete", f"pod/{LOADER}", "--ignore-not-found", "--wait", "--grace-period=1")
            run(Command(gone, "delete the pod that mounts the claim"), self._log, threading.Event())

    # What is applied

    def ensure(self, version: str, plural: str, wanted: Object) -> None:
        """Creates the object, or replaces it: Secrets go this way and not by kubectl, whose commands are logged."""
        metadata = wanted["metadata"]
        where = collection(version, plural, metadata.get("namespace", ""))
        live = self._kube.get(version, plural, metadata["name"], metadata.get("namespace", ""))
        if live is None:
            self._kube.call("POST", where, wanted)
        elif plural != "namespaces":
            version_of = {"resourceVersion": live["metadata"]["resourceVersion"]}
            kept = (
                {"clusterIP": live["spec"]["clusterIP"]} if plural == "services" and "clusterIP" in live["spec"] else {}
            )
            body = {**wanted, "metadata": {**metadata, **version_of}}
            if kept:
                body["spec"] = {**wanted["spec"], **kept}
            self._kube.call("PUT", f"{where}/{metadata['name']}", body)

    def clean(self) -> None:
        """Credentials do not stay behind; models do, where others may want them."""
        if self._account == ACCOUNT:
            for plural in ("serviceaccounts", "secrets"):
                try:
                    self._kube.call("DELETE", f"{collection('v1', plural, self.namespace)}/{ACCOUNT}")
                except LookupError:
                    continue


_SMALL = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "256Mi"}}
"""Namespaces with a quota take no pod that does not say what it needs."""
_LABELS = {"app.kubernetes.io/managed-by": "servecert"}


def fingerprint(artifacts: Path) -> str:
    """Of names and contents: the same model is the same place."""
    digest = hashlib.sha256()
    for file in sorted(artifacts.rglob("*")):
        if file.is_file():
            digest.update(str(file.relative_to(artifacts)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def loader(claim: str) -> str:
    import yaml

    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": LOADER, "labels": {**_LABELS, "app.kubernetes.io/name": LOADER}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "loader",
                    "image": pinned()["loader-image"],
                    "command": ["sleep", "3600"],
                    "resources": _SMALL,
                    "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                }
            ],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }
    return yaml.safe_dump(pod, sort_keys=False)


def minio_objects() -> tuple[Object, Object]:
    """Deployment and Service."""
    labels = {"app": "minio"}
    container = {
        "name": "minio",
        "image": pinned()["minio-image"],
        "args": ["server", "/data"],
        "env": [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": "minio", "key": key}}}
            for name, key in (("MINIO_ROOT_USER", "user"), ("MINIO_ROOT_PASSWORD", "password"))
        ],
        "ports": [{"containerPort": 9000}],
        "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": 9000}, "periodSeconds": 2},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
    }
    pod = {
        "metadata": {"labels": labels},
        "spec": {"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]},
    }
    metadata = {"name": "minio", "namespace": "minio", "labels": _LABELS}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": labels, "ports": [{"port": 9000, "name": "http"}]},
    }
    return deployment, service
