"""The page of the reward service's interface, from the OpenAPI description of its application; nothing is served."""

from collections.abc import Iterator
from typing import Any, Final, cast

from actors.rewards.http import RewardBackend, build_app, token_digest
from fgaif_ray.fact_types import DEFAULT

INTRODUCTION: Final = """\
# HTTP interface

What `fgaif serve-rewards` answers. [The reward service](../reward-service.md) says how it behaves; `/docs` of a running
service is this page with forms to try it, and `/openapi.json` its description for programs
([openapi.json](openapi.json) is that of a service with the default fact types).

This page is made from the code (`actors/rewards/http.py`, `fgaif_ray/serving/wire.py`).
"""
METHODS: Final = ("get", "post")


def describe_service() -> dict[str, Any]:
    """The OpenAPI description of a service that wants a token. No backend is needed: no request is answered."""
    app = build_app(cast("RewardBackend", None), token_digest("token"), lambda *_: None, DEFAULT)
    described: dict[str, Any] = app.openapi()
    return described


def schema_name(schema: dict[str, Any]) -> str | None:
    """The name of a schema that is referred to."""
    reference = schema.get("$ref")
    return None if reference is None else str(reference).rpartition("/")[2]


def describe_schema(schema: dict[str, Any]) -> str:
    """A schema in words, with a link where it has a table of its own."""
    name = schema_name(schema)
    if name is not None:
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(describe_schema, schema["anyOf"])))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])} {describe_schema(schema['prefixItems'][0])}s"
        return f"list of {describe_schema(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {describe_schema(schema['additionalProperties'])}"
    return str(schema.get("type", "anything"))


def limits(schema: dict[str, Any]) -> str:
    """How long or large it may be."""
    words = {"maxLength": "characters", "maxItems": "items"}
    found = [f"at most {schema[key]:,} {what}" for key, what in words.items() if key in schema]
    for branch in schema.get("anyOf", ()):
        found += [f"at most {branch[key]:,} {what}" for key, what in words.items() if key in branch]
    return "".join(f", {one}" for one in found)


def _schema_lines(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield from (f"### {name}", "", _text(schema.get("description", "")), "")
    required = set(schema.get("required", ()))
    rows = [
        f"| `{field}` | {describe_schema(of)}{limits(of)} | {'yes' if field in required else 'no'} "
        f"| {_text(of.get('description', ''))} |"
        for field, of in schema.get("properties", {}).items()
    ]
    if rows:
        yield from ("| field | type | always there | meaning |", "|---|---|---|---|", *rows, "")


def _text(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


def _route_lines(path: str, method: str, route: dict[str, Any]) -> Iterator[str]:
    yield from (f"### {method.upper()} {path}", "", _text(route.get("description", "")), "")
    if route.get("security"):
        yield from ("Wants the bearer token, where the service has one.", "")
    body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        yield from (f"Takes {describe_schema(body)} as JSON.", "")
    yield from ("| status | answer |", "|---|---|")
    for status, answer in route["responses"].items():
        found = answer.get("content", {}).get("application/json", {}).get("schema", {})
        yield f"| {status} | {describe_schema(found)} |"
    yield ""


def http_page(described: dict[str, Any]) -> str:
    """The page, as Markdown.

    Args:
        described: OpenAPI description of the service.
    """
    lines = [INTRODUCTION, "## Routes", ""]
    for path, routes in described["paths"].items():
        for method in METHODS:
            if method in routes:
                lines += _route_lines(path, method, routes[method])
    lines += ["## What is sent and answered", ""]
    for name, schema in described["components"]["schemas"].items():
        lines += _schema_lines(name, schema)
    return "\n".join(lines)
