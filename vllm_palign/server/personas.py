"""``/v1/personas``: list, read, put and delete personas of a running server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.errors import (
    MethodNotOffered,
    NotOffered,
    PalignError,
    PersonaInvalid,
    PersonaTooLarge,
)
from vllm_palign.persona import ID_PATTERN, MAX_FILE_BYTES, Persona, is_persona_id
from vllm_palign.registry import Outcome, Record
from vllm_palign.server.json_text import members
from vllm_palign.shape import is_foreign, warn_foreign
from vllm_palign.tenants import caller
from vllm_palign.tenants.tenant import OPERATOR, Tenant

MAX_LIMIT = 1000


class PersonaSummary(BaseModel):
    """One registered persona."""

    id: str
    object: Literal["persona"] = "persona"
    created: int
    """Unix seconds of when these bytes were registered under this id."""
    digest: str
    """sha256 of the file, in hex."""
    bytes: int
    shared: bool
    """Whether it is the operator's and only lent to the caller."""
    name: str
    """The name inside the file."""
    description: str
    base_model: str
    method: str
    alpha: float
    steered_heads: int
    num_layers: int
    num_heads: int
    head_dim: int


class PersonaObject(PersonaSummary):
    """The same with how it was made."""

    fit: dict[str, Any]


class PersonaList(BaseModel):
    """One page, sorted by id. With ``has_more``, ask again with ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[PersonaSummary]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ErrorInfo(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | int | None


class Error(BaseModel):
    """OpenAI's error object."""

    error: ErrorInfo


class _Route(APIRoute):
    """Turns our errors, and FastAPI's about parameters, into OpenAI error objects."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                try:
                    return await handle(request)
                except RequestValidationError as error:
                    raise _invalid(error) from None
            except PalignError as error:
                return JSONResponse(error.to_openai(), error.status, error.headers)

        return handler


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error} for status in (*statuses, 500, 503)}


router = APIRouter(prefix="/v1/personas", tags=["personas"], route_class=_Route)
Id = Annotated[
    str,
    Path(
        description="The name requests ask for.",
        json_schema_extra={"pattern": f"^{ID_PATTERN.pattern}$"},
    ),
]
_FILE = {
    "requestBody": {
        "required": True,
        "description": "A persona file, at most 16 MiB.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("", summary="List personas", responses=_errors(400))
async def list_personas(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 20,
    after: Annotated[
        str,
        Query(
            description="The last id of the page before.",
            json_schema_extra={"pattern": f"^({ID_PATTERN.pattern})?$"},
        ),
    ] = "",
) -> PersonaList:
    """The caller's own personas and those shared with it, sorted by id."""
    front_end, tenant = _who(request)
    if after:
        _check_id(after, "after")
    page = await front_end.manage(
        lambda: front_end.resolver.registry.page(tenant, limit=limit, after=after)
    )
    data = [PersonaSummary(**_facts(record, tenant)) for record in page.records]
    return PersonaList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


@router.get(
    "/{persona_id}",
    summary="Read one persona's metadata",
    response_model=PersonaObject,
    responses=_errors(400, 404),
)
async def get_persona(request: Request, persona_id: Id) -> Response:
    """Its metadata and digest."""
    front_end, tenant = _who(request)
    _check_id(persona_id, "id")
    registry = front_end.resolver.registry

    def read() -> bytes:
        record, data = registry.read(tenant, persona_id)
        request.scope["palign_digest"] = record.digest
        return _whole(record, Persona.from_bytes(data), data, tenant)

    return Response(await front_end.manage(read), media_type="application/json")


@router.put(
    "/{persona_id}",
    summary="Register a persona file",
    response_model=PersonaObject,
    responses={
        **_errors(400, 403, 409, 413, 507),
        200: {"description": "The same bytes as before, or replaced."},
        201: {"model": PersonaObject, "description": "Registered."},
    },
    openapi_extra=_FILE,
)
async def put_persona(
    request: Request,
    persona_id: Id,
    replace: Annotated[
        bool, Query(description="Replace other bytes under this id instead of answering 409.")
    ] = False,
) -> Response:
    """201: new. 200: the same bytes again, or replaced. Served by every server of this registry at once;
    requests that are running finish with the bytes they began with."""
    front_end, tenant = _who(request)
    tenant.require("manage")
    _check_id(persona_id, "id")
    data = await _read_bounded(request)
    resolver = front_end.resolver

    def put() -> tuple[bytes, Outcome]:
        persona = Persona.from_bytes(data, source=f"persona {persona_id!r}")
        resolver.shape.check(persona, persona_id)
        record, outcome = resolver.registry.put(tenant, persona_id, persona, data, replace=replace)
        if outcome is not Outcome.UNCHANGED and is_foreign(persona, front_end.model):
            warn_foreign({persona_id: persona.base_model}, front_end.model)
        request.scope["palign_digest"] = record.digest
        return _whole(record, persona, data, tenant), outcome

    answer, outcome = await front_end.manage(put)
    status = 201 if outcome is Outcome.CREATED else 200
    return Response(answer, status, media_type="application/json")


@router.delete(
    "/{persona_id}",
    summary="Remove a persona",
    status_code=204,
    responses=_errors(400, 403, 404),
)
async def delete_persona(request: Request, persona_id: Id) -> Response:
    """Requests that are running finish with it, later ones get 404."""
    front_end, tenant = _who(request)
    tenant.require("manage")
    _check_id(persona_id, "id")
    record = await front_end.manage(lambda: front_end.resolver.registry.delete(tenant, persona_id))
    request.scope["palign_digest"] = record.digest
    return Response(status_code=204)


# Starlette would answer what is left with an object of its own.
@router.api_route("", methods=["POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
async def no_such_method_of_the_list() -> None:
    raise MethodNotOffered("only GET is offered here")


@router.api_route("/{persona_id}", methods=["POST", "PATCH"], include_in_schema=False)
async def no_such_method_of_a_persona() -> None:
    raise MethodNotOffered("only GET, PUT and DELETE are offered here")


@router.api_route(
    "/{persona_id}/{rest:path}",
    methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
    include_in_schema=False,
)
async def no_such_path() -> None:
    raise NotOffered("there is no such path; a persona is at /v1/personas/{id}")


def _who(request: Request) -> tuple[FrontEnd, Tenant]:
    front_end: FrontEnd = request.app.state.palign
    return front_end, caller.current(tenants=front_end.tenants is not None)


def _check_id(name: str, param: str) -> None:
    if not is_persona_id(name):
        raise PersonaInvalid(
            f"{param}: got {ascii(name)[:80]}, wanted a persona id: 1 to 128 of A-Z a-z 0-9 . _ -, "
            "beginning with a letter or digit",
            param=param,
        )


async def _read_bounded(request: Request) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isascii() and announced.isdigit() else 0
    body = bytearray()
    if size <= MAX_FILE_BYTES:
        try:
            async for chunk in request.stream():
                body += chunk
                size = len(body)
                if size > MAX_FILE_BYTES:
                    break
        except ClientDisconnect:  # nobody reads the answer, but the audit log does
            raise PersonaInvalid(f"the upload broke off after {len(body)} bytes") from None
    if size > MAX_FILE_BYTES:
        raise PersonaTooLarge(f"the body is larger than {MAX_FILE_BYTES} bytes (16 MiB)")
    return bytes(body)


def _facts(record: Record, tenant: Tenant) -> dict[str, Any]:
    return {
        **record.metadata,
        "id": record.name,
        "created": record.created,
        "digest": record.digest,
        "bytes": record.size,
        "shared": tenant.name != OPERATOR and record.tenant == OPERATOR,
        "base_model": record.base_model,
        "num_layers": record.num_layers,
        "num_heads": record.num_heads,
        "head_dim": record.head_dim,
    }


def _whole(record: Record, persona: Persona, data: bytes, tenant: Tenant) -> bytes:
    """The JSON of a PersonaObject, with ``fit`` as it is written in the file ``data``: up to 16 MiB, which
    would stop every other request while they are written again."""
    facts = _facts(record, tenant)
    short = ("name", "description", "base_model", "method")
    whole = PersonaObject(**facts | {field: getattr(persona, field) for field in short}, fit={})
    text = whole.model_dump_json().encode()
    place = next(member for member in members(text) if member.name == "fit")
    return b"".join((text[: place.value], _fit(data), text[place.end :]))


def _fit(data: bytes) -> bytes:
    """The JSON text of ``fit`` in the header of a persona file."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["__metadata__"]["palign"].encode()
    place = next(member for member in members(header) if member.name == "fit")
    return bytes(header[place.value : place.end])


def _invalid(error: RequestValidationError) -> PersonaInvalid:
    first = error.errors()[0]
    param = str(first["loc"][-1])
    return PersonaInvalid(f"{param}: {first['msg']}", param=param)
