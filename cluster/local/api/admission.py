"""What KServe's webhooks do not admit."""

from __future__ import annotations

from cluster.local.api.resources import Object


def refused_runtime(runtime: Object, others: list[Object]) -> str | None:
    """Why KServe does not admit it: it and another may be chosen for a format with one priority. Source: kserve,
    pkg/webhook/admission/servingruntime."""
    name, kind = runtime["metadata"].get("name", ""), runtime.get("kind", "")
    mine = _choosable(runtime)
    protocols = set(runtime["spec"].get("protocolVersions") or [])
    for other in others:
        named = other["metadata"]["name"]
        if (
            named == name
            or other["spec"].get("disabled")
            or not protocols & set(other["spec"].get("protocolVersions") or [])
        ):
            continue
        if both := sorted(mine & _choosable(other)):
            where = f" in namespace {other['metadata']['namespace']}" if kind == "ServingRuntime" else ""
            return (
                f'admission webhook "{kind.lower()}.kserve-webhook-server.validator" denied the request: same priority'
                f" assigned for the model format {both[0][0]} in the {kind.lower()}s {named} and {name}{where}"
            )
    return None


def _choosable(runtime: Object) -> set[tuple[str, str, int]]:
    """Formats that it may be chosen for without being named, with their versions and its priority."""
    if runtime["spec"].get("disabled"):
        return set()
    return {
        (str(item.get("name", "")).lower(), str(item.get("version", "")), int(item["priority"]))
        for item in runtime["spec"].get("supportedModelFormats") or []
        if item.get("autoSelect") and item.get("priority") is not None
    }
