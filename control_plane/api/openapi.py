"""The OpenAPI 3.1 document, made from the table of operations: no second description to keep true.

Requests are described by the very models that check them; answers by the messages they have to fit
(`codec`), whose comments are the descriptions in `operator.proto`.
"""

import re
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from control_plane.api import conditions
from control_plane.api.codec import answer_kind, is_map, prefix
from control_plane.api.errors import EXACT, REASONS, TABLE
from control_plane.api.examples import EXAMPLES, EXPORT_EXAMPLE
from control_plane.api.operations import EXPORT, EXPORT_TYPE, WATCH_PATH, WATCHES, Operation
from shared import VERSION

Json = dict[str, Any]

_REF = "#/components/schemas/"

_PROBLEM: Json = {
    "type": "object",
    "description": "RFC 9457, with `error` and `details` besides.",
    "required": ["type", "title", "status", "detail", "reason", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "reason": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("field", "message", "remedy")},
            },
        },
        "error": {"type": "string"},
        "details": {},
        "requestId": {"type": "string"},
    },
}
_PAGINATION: Json = {
    "type": "object",
    "required": ["nextCursor", "hasMore", "limit"],
    "properties": {
        "nextCursor": {"type": ["string", "null"]},
        "hasMore": {"type": "boolean"},
        "limit": {
            "type": ["integer", "null"],
            "description": "How many a page holds at most, after clamping; null where everything is in one.",
        },
    },
}


def document(operations: Sequence[Operation]) -> Json:
    """The whole document; valid OpenAPI 3.1."""
    schemas: Json = {"Problem": _PROBLEM, "Pagination": _PAGINATION}
    paths: dict[str, Json] = {}
    for operation in operations:
        described = _operation(operation, schemas)
        if operation.location:
            described["responses"][str(operation.status)]["links"] = _links(operation, operations)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    paths[WATCH_PATH] = {"get": _watch(schemas)}
    paths[EXPORT.path] = {"get": _export()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "variantd",
            "version": VERSION,
            "summary": "Controlled experiments on files.",
            "description": "Every `GET` answers `HEAD` too. Every answer carries `X-Request-Id`: the request's own,"
            " or one made for it.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in [*dict.fromkeys(map(_tag, operations)), "Watch"]],
        "security": [{"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key, `sk_…`."}
            },
        },
    }


def _links(made: Operation, operations: Sequence[Operation]) -> Json:
    """What can be done with what was made: every operation at its location, or on it without further names."""
    links = {}
    shape = re.sub(r"\{\w+\}", "{}", made.location)
    fields = re.findall(r"\{(\w+)\}", made.location)
    for operation in operations:
        other = re.sub(r"\{\w+\}", "{}", operation.path)
        if re.fullmatch(re.escape(shape) + r"([/:][\w:]+)?", other) and len(operation.named) == len(fields):
            service, method = operation.rpc.split(".")
            links[method] = {
                "operationId": f"{service}_{method}",
                "parameters": {
                    name: f"$response.body#/{field}"
                    for name, field in zip(operation.named, fields, strict=True)
                },
            }
    return links


def _watch(schemas: Json) -> Json:
    """The streams, as one stream of server-sent events."""
    events = [_ref(answer_kind(watch.rpc), schemas) for watch in WATCHES]
    scopes = ", ".join(f"`{watch.name}` needs `{watch.scope.value}`" for watch in WATCHES)
    twins = ", ".join(f"`{watch.rpc}`" for watch in WATCHES)
    return {
        "operationId": "Watch",
        "tags": ["Watch"],
        "summary": "What changes, as it changes",
        "description": "Server-sent events. A stream begins with `reset`, then lists everything (`present`) up to"
        " `listed`; then come `changed` and `removed`. `data` is an event as below, with its `kind` besides. Whoever"
        " connects again, with or without `Last-Event-ID`, gets `reset` and everything again. A stream that is not"
        " read for 20 seconds is cut (`SLOW_CONSUMER`); one that ends for a reason says so in an `error` event.\n\n"
        f"Scopes: {scopes}; without `kinds`, whatever the key may read. gRPC: {twins}.",
        "parameters": [
            {
                "name": "kinds",
                "in": "query",
                "style": "form",
                "explode": False,
                "schema": {"type": "array", "items": {"enum": [watch.name for watch in WATCHES]}},
            },
            {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}},
        ],
        "responses": {
            "200": {
                "description": "Events without end.",
                "content": {
                    "text/event-stream": {"schema": {"type": "string"}, "x-event": {"anyOf": events}}
                },
            },
            **_refusals(changes=False),
        },
    }


def _export() -> Json:
    """The stream that ends."""
    what = EXPORT.request.model_json_schema()["$defs"]["What"]
    return {
        "operationId": EXPORT.rpc.replace(".", "_"),
        "tags": [_tag(EXPORT)],
        "summary": "Export what is kept of an experiment",
        "description": "Lines of JSON (NDJSON), each a row, of every phase of every run. Read in pages: what is stored"
        " meanwhile may be among them. An answer that breaks off has no end; the transfer fails then. `subject` and"
        f" `properties` are null for a key without `content:read`.\n\nScope: `{EXPORT.scope.value}`."
        f" gRPC: `{EXPORT.rpc}`.",
        "parameters": [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
                "example": EXPORT_EXAMPLE["id"],
            },
            {
                "name": "what",
                "in": "query",
                "schema": {"type": "string", "enum": what["enum"], "default": "events"},
                "example": EXPORT_EXAMPLE["what"],
            },
        ],
        "responses": {
            "200": {"description": "Rows.", "content": {EXPORT_TYPE: {"schema": {"type": "string"}}}},
            **_refusals(changes=False),
        },
    }


def _tag(operation: Operation) -> str:
    return operation.rpc.partition("Service.")[0]


def _operation(operation: Operation, schemas: Json) -> Json:
    service, method = operation.rpc.split(".")
    example = EXAMPLES[operation.rpc]
    named = operation.named
    model = _request_schema(operation, schemas)
    described: Json = {
        "operationId": f"{service}_{method}",
        "tags": [_tag(operation)],
        "summary": re.sub(r"(?<!^)(?=[A-Z])", " ", method).lower().capitalize(),
        "description": f"{(operation.use_case.__doc__ or '').strip()}\n\nScope: `{operation.scope.value}`. "
        f"gRPC: `{operation.rpc}`." + (f" Also at `{operation.alias}`." if operation.alias else ""),
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
                "example": example[name],
            }
            for name in named
        ],
        "responses": {
            str(operation.status): _success(operation, schemas),
            **_refusals(changes=operation.method != "GET"),
        },
    }
    if operation.already:
        described["responses"][str(operation.already)] = _success(operation, schemas)
    rest = {name: schema for name, schema in model["properties"].items() if name not in named}
    sent = {name: value for name, value in example.items() if name not in named}
    if operation.method == "GET":
        described["parameters"] += [_query(name, schema, sent.get(name)) for name, schema in rest.items()]
        if conditions.is_single(operation):
            said = "Tags that the caller has; 304 where the resource still has one of them."
            described["parameters"].append(_header("If-None-Match", said))
            described["responses"]["304"] = {"description": "It is as the caller has it; there is no body."}
        return described
    if operation.changes:
        key = _header("Idempotency-Key", "The same key answers the same.")
        key["schema"]["maxLength"] = 128
        described["parameters"].append(key)
        about = conditions.subject(operation)
        if about is not None:
            said = f"The change is made only while `GET {about.path}` has one of these tags; else 412."
            described["parameters"].append(_header("If-Match", said))
    if rest:
        body = {
            **model,
            "properties": rest,
            "required": [name for name in model.get("required", []) if name in rest],
        }
        described["requestBody"] = {
            "required": bool(body["required"]),
            "content": {"application/json": {"schema": body, "example": sent}},
        }
    return described


def _header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "schema": {"type": "string"}, "description": description}


def _query(name: str, schema: Json, example: Any) -> Json:
    """A query parameter; there is no null in a query, and labels come one by one."""
    if name == "labels":
        text = "Only what carries this label; NAME is its name. Several have to hold together."
        return {"name": "label.NAME", "in": "query", "schema": {"type": "string"}, "description": text}
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    plain = {**kinds[0], "title": schema.get("title", name)} if kinds else schema
    shown: Json = {"name": name, "in": "query", "schema": plain}
    return shown if example is None else {**shown, "example": example}


def _request_schema(operation: Operation, schemas: Json) -> Json:
    schema = operation.request.model_json_schema(by_alias=True, ref_template=_REF + "{model}")
    schemas.update(schema.pop("$defs", {}))
    schema.pop("title", None)
    schema.pop("description", None)
    return {"properties": {}, **schema}


def _success(operation: Operation, schemas: Json) -> Json:
    if operation.status == 204:
        return {"description": "Done; there is no body."}
    message = answer_kind(operation.rpc)
    page = message.fields_by_name.get("next_page_token")
    if page is None:
        schema: Json = _ref(message, schemas)
    else:
        items = next(field for field in message.fields if field is not page)
        schema = {
            "type": "object",
            "required": ["entities", "pagination"],
            "properties": {
                "entities": {"type": "array", "items": _ref(items.message_type, schemas)},
                "pagination": {"$ref": _REF + "Pagination"},
            },
        }
    answer: Json = {"description": "Done.", "content": {"application/json": {"schema": schema}}}
    headers = {
        "X-Request-Id": {"schema": {"type": "string"}, "description": "What the log calls the request."}
    }
    if operation.location:
        headers["Location"] = {"schema": {"type": "string"}, "description": "Where it is."}
    if conditions.is_single(operation):
        headers["ETag"] = {"schema": {"type": "string"}, "description": "The tag of what is shown; strong."}
    return {**answer, "headers": headers}


def _refusals(*, changes: bool) -> Json:
    titles: dict[int, str] = {row.http: row.title for row in reversed(TABLE.values())}
    if changes:
        titles |= {
            status: REASONS[reason][:1].upper() + REASONS[reason][1:] for reason, status in EXACT.items()
        }
    statuses = sorted(titles)
    return {
        str(status): {
            "description": titles[status] + ".",
            "content": {"application/problem+json": {"schema": {"$ref": _REF + "Problem"}}},
        }
        for status in statuses
    }


# -- answers, by their messages --------------------------------------------------------------------


def _ref(message: Any, schemas: Json) -> Json:
    if message.name not in schemas:
        schemas[message.name] = {}  # before its fields: messages may contain one another
        schemas[message.name] = {
            "type": "object",
            "properties": {field.json_name: _field(field, schemas) for field in message.fields},
        }
    return {"$ref": _REF + message.name}


def _field(field: Any, schemas: Json) -> Json:
    if is_map(field):
        value = field.message_type.fields_by_name["value"]
        return {"type": "object", "additionalProperties": _one(value, schemas)}
    if field.is_repeated:
        return {"type": "array", "items": _one(field, schemas)}
    schema = _one(field, schemas)
    if not field.has_presence:
        return schema
    return {"anyOf": [schema, {"type": "null"}]}


_SCALARS = {
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
}


def _one(field: Any, schemas: Json) -> Json:
    if field.enum_type is not None:
        names = [value.name.removeprefix(prefix(field.enum_type)).lower() for value in field.enum_type.values]
        return {"type": "string", "enum": [name for name in names if name != "unspecified"]}
    if field.message_type is not None:
        known: dict[str, Json] = {
            "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
            "google.protobuf.Struct": {"type": "object"},
        }
        return known.get(field.message_type.full_name) or _ref(field.message_type, schemas)
    if field.name == "revision":
        return {"type": "string", "pattern": "^[0-9]+$"}
    return dict(_SCALARS.get(field.cpp_type, {"type": "integer"}))


DOCS_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>variantd REST</title>
<meta name="viewport" content="width=device-width, initial-scale=1"></head>
<body><div id="docs"></div><script src="/docs/redoc.js"></script>
<script src="/docs/start.js"></script></body></html>
"""
DOCS_START = 'Redoc.init("/openapi.json", {disableSearch: true}, document.getElementById("docs"));\n'
"""In a file of its own, so that the page's policy can refuse every inline script."""
