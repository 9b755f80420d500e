"""The OpenAPI document, made of the application's routes and of the table in `operations`.

quart-schema turns the routes, the models of queries and what is said of the whole into OpenAPI. Its decorators are not
used: they would validate each request (and, by wrapping `make_response`, look at each answer) in a way that lets a
query field or a key in JSON come twice, and names neither all faults nor what was expected; and they know one content
type an operation, where enqueuing has five.

Made once, on the first request, in a thread: it takes a quarter of a second, most of it for loading what it needs, so
this module is imported by nobody at the start.
"""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from pydantic.json_schema import models_json_schema
from quart_schema import HttpSecurityScheme, Info, QuartSchema, Server, Tag
from quart_schema.openapi import PATH_RE, APIKeySecurityScheme, OpenAPIProvider

from trispool.admin import moments, schemas
from trispool.admin.auth import Role
from trispool.admin.described import NEW_TASK, Answer, Operation, Sent
from trispool.admin.operations import OPERATIONS, TAGS, TASK_ID
from trispool.admin.session import COOKIE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel
    from quart import Quart
    from werkzeug.routing import Rule

    from trispool.admin.guard import Needs

__all__ = ["openapi_document"]

_DESCRIPTION: Final = """\
All that can be seen and done in trispool. Times are Unix seconds, numbers with a fraction; where a time is sent, it may
be ISO 8601 with its offset, too. Lengths of time are seconds. Unknown members and query fields are refused. Errors are
problem documents (RFC 9457) that name every fault. Lists come in pages: `cursor` asks for the next one.

`Authorization: Bearer TOKEN` says who asks; `trispool token create` makes tokens. The role `operate` may do everything.
"""

_PROBLEMS: Final = {
    400: "The request is not as described here; `errors` names every fault.",
    401: "No token, or one that is not known.",
    403: "The token's role does not permit it, or a page of another site asks.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    409: "Not possible in the state it is in, or these fields do not go together.",
    413: "Too large.",
    415: "Not a content type, or content encoding, that is understood here.",
    421: "This server has another name.",
    422: "The key was used for another request.",
    429: "Too many wrong tokens from this address, or too much at once; `Retry-After` tells when to try again.",
    500: "A fault of the service; its log says more.",
    503: "Not now: the disk is full, the spool is read-only, the service is stopping.",
}
_HEADERS: Final = {
    401: {"WWW-Authenticate": "How to authenticate."},
    403: {"WWW-Authenticate": "Which role is needed."},
    415: {"Accept-Post": "What is understood.", "Accept-Patch": "What is understood."},
    429: {"Retry-After": "Seconds."},
    503: {"Retry-After": "Seconds."},
}
_PATH: Final[Mapping[str, Mapping[str, Any]]] = {
    "name": {"description": "The name of a spool.", "example": "default", "schema": {"type": "string", "minLength": 1}},
    "task_id": {
        "description": "The id of a task.",
        "example": TASK_ID,
        "schema": {"type": "string", "minLength": 1},
    },
    "bulk_id": {
        "description": "The id of a bulk action.",
        "example": "bulk-0",
        "schema": {"type": "string", "minLength": 1},
    },
    "pid": {
        "description": "The process id of a worker.",
        "example": 4711,
        "schema": {"type": "integer", "minimum": 1, "maximum": 4194304},
    },
}
_REF: Final = "#/components/schemas/{model}"


def openapi_document(app: Quart, needs: Mapping[str, Needs]) -> dict[str, Any]:
    """The document. It takes long.

    Args:
        app: The application.
        needs: What each endpoint needs; those of operations that are not in the table are left out.
    """
    extension = QuartSchema(
        info=Info(title="trispool", version=version("trispool"), description=_DESCRIPTION),
        tags=[Tag(name=name, description=description) for name, description in TAGS.items()],
        servers=[Server(url=".", description="Where this document is.")],
        security_schemes={
            "token": HttpSecurityScheme(scheme="bearer"),
            "session": APIKeySecurityScheme(COOKIE, "cookie"),
        },
        security=[{"token": []}, {"session": []}],
    )
    document = _Provider(app, extension, needs).schema()
    document["components"]["schemas"] = dict(sorted(_all_schemas().items()))
    document["components"]["responses"] = {f"Problem{status}": _problem(status) for status in _PROBLEMS}
    tidied: dict[str, Any] = _tidied(document)
    tidied["components"]["schemas"]["NewTask"] = _tidied(NEW_TASK)
    tidied["components"]["schemas"]["Moment"] = {"description": f"{moments.EXPECTED}.", **moments.SCHEMA}
    return tidied


class _Provider(OpenAPIProvider):
    def __init__(self, app: Quart, extension: QuartSchema, needs: Mapping[str, Needs]) -> None:
        super().__init__(app, extension)
        app.config.setdefault("QUART_SCHEMA_CONVERSION_PREFERENCE", "pydantic")
        app.config.setdefault("QUART_SCHEMA_CONVERT_CASING", False)
        self._needs = needs

    def generate_rules(self) -> Iterable[Rule]:
        """The routes of the table, in its order."""
        rules = {rule.endpoint.rpartition(".")[2]: rule for rule in self._app.url_map.iter_rules()}
        return [rules[name] for name in OPERATIONS if name in rules]

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        """One operation."""
        name = rule.endpoint.rpartition(".")[2]
        operation = OPERATIONS[name]
        path = PATH_RE.sub(r"{\1}", rule.rule)
        parameters = [{"name": part, "in": "path", "required": True, **_PATH[part]} for part in sorted(rule.arguments)]
        if operation.query is not None:
            found, _ = self.build_querystring_parameters(operation.query)
            for parameter in found:
                if parameter["name"] in operation.examples:
                    parameter["example"] = operation.examples[parameter["name"]]
            parameters += found
        parameters += [{"name": header, "in": "header", **what} for header, what in operation.headers.items()]
        [method] = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        return {path: {method.lower(): self._operation(name, operation, rule.endpoint, parameters)}}, {}

    def _operation(
        self, name: str, operation: Operation, endpoint: str, parameters: list[dict[str, Any]]
    ) -> dict[str, Any]:
        needed = self._needs[endpoint]
        role = {None: "Needs no token.", "known": "Needs any token."}.get(needed, f"Needs the role `{needed}`.")
        answers = {str(status): _answer(answer) for status, answer in operation.answers.items()}
        problems = {400, 421, 500, *operation.problems} | ({401, 403, 429} if needed is not None else set())
        if endpoint.endswith(("healthz", "readyz")):
            problems -= {400}
            answers["503"] = _answer(Answer("Not so.", schemas.Unwell, "application/problem+json"))
        answers |= {
            str(status): {"$ref": f"#/components/responses/Problem{status}"}
            for status in sorted(problems)
            if str(status) not in answers
        }
        made: dict[str, Any] = {
            "operationId": name if endpoint.partition(".")[0] != "session" else f"{name}_session",
            "tags": [operation.tag],
            "summary": operation.summary,
            "description": f"{operation.description}\n\n{role}".strip(),
            "parameters": parameters,
            "responses": answers,
        }
        if isinstance(needed, Role):
            made["x-role"] = needed.value
        if needed is None:
            made["security"] = []
        if operation.sends:
            made["requestBody"] = {
                "required": operation.needs_body,
                "content": {kind: _sent(sent) for kind, sent in operation.sends.items()},
            }
        return made


def _schema(schema: type[BaseModel] | Mapping[str, Any]) -> dict[str, Any]:
    return dict(schema) if not isinstance(schema, type) else {"$ref": _REF.format(model=schema.__name__)}


def _sent(sent: Sent) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _schema(sent.schema)}
    if sent.examples:
        content["examples"] = {name: {"value": example} for name, example in sent.examples.items()}
    return content


def _answer(answer: Answer) -> dict[str, Any]:
    made: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        made["headers"] = _headers(answer.headers)
    if answer.schema is not None:
        made["content"] = {
            answer.content_type: {"schema": _schema(answer.schema)},
            **{kind: {"schema": dict(schema)} for kind, schema in answer.other.items()},
        }
    return made


def _problem(status: int) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    made = _answer(Answer(f"{title}. {_PROBLEMS[status]}", schemas.Problem, "application/problem+json"))
    if status in _HEADERS:
        made["headers"] = _headers(_HEADERS[status])
    return made


def _headers(headers: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}


def _all_schemas() -> dict[str, Any]:
    """Those of all models, requests and answers alike."""
    answers = [model for name in schemas.__all__ if isinstance(model := getattr(schemas, name), type)]
    requests = [
        sent.schema
        for operation in OPERATIONS.values()
        for sent in operation.sends.values()
        if isinstance(sent.schema, type)
    ]
    _, made = models_json_schema(
        [*((model, "serialization") for model in answers), *((model, "validation") for model in requests)],
        ref_template=_REF,
    )
    definitions: dict[str, Any] = made["$defs"]
    return definitions


def _tidied(value: Any) -> Any:  # noqa: ANN401 # JSON
    """Without titles that repeat names and defaults that mean "absent"; with whole references, also to times."""
    if isinstance(value, list):
        return [_tidied(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("anyOf") == moments.SCHEMA["anyOf"]:
        value = {key: member for key, member in value.items() if key != "anyOf"} | {"$ref": "Moment"}
    tidied = {}
    for key, member in value.items():
        if (key == "title" and isinstance(member, str) and "version" not in value) or (
            key == "default" and member is not False and member in (None, "", 0, [])
        ):
            continue
        if key == "$ref" and not member.startswith("#"):
            member = _REF.format(model=member)
        tidied[key] = _tidied(member)
    return tidied
