"""The ``kubernetes`` client for a kubeconfig, and requests on the connections beneath its generated calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.base.errors import UsageError


def api_client(kubeconfig: Path, context: str | None = None) -> Any:
    """Raises UsageError for a kubeconfig that cannot be read or has no such context."""
    from kubernetes import client, config

    try:
        configuration: Any = client.Configuration()
        # The client writes certificates into files; beside the kubeconfig they go when it goes.
        config.load_kube_config(  # type: ignore[no-untyped-call]
            str(kubeconfig),
            context=context,
            client_configuration=configuration,
            temp_file_path=str(kubeconfig.parent),
        )
        if urlsplit(configuration.host).hostname in ("127.0.0.1", "localhost", "::1"):
            configuration.proxy = None  # a proxy of the environment is not on the way to this machine
        return client.ApiClient(configuration)
    except (config.ConfigException, OSError) as error:
        raise UsageError(f"{kubeconfig}: expected a kubeconfig: {error}") from error


def authorized(api: Any) -> dict[str, str]:
    """Headers of a request for JSON by the client's credentials, which a login plugin may renew each time."""
    given = {item["key"]: item["value"] for item in api.configuration.auth_settings().values()}
    return {**given, "Content-Type": "application/json"}
