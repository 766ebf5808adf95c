"""``/v1/personas``: list, read, put and delete personas of a running server."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from vllm_palign import metrics
from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.errors import (
    MethodNotOffered,
    NotOffered,
    PalignError,
    PersonaForbidden,
    PersonaInvalid,
)
from vllm_palign.persona import ID_PATTERN, MAX_FILE_BYTES, Persona, is_persona_id
from vllm_palign.registry import Outcome, Record
from vllm_palign.server import enrolment
from vllm_palign.server.enrolment import Enrolment
from vllm_palign.server.json_text import members
from vllm_palign.server.routes import Route, errors, read_bounded, who
from vllm_palign.shape import is_foreign, warn_foreign
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


router = APIRouter(prefix="/v1/personas", tags=["personas"], route_class=Route)
Id = Annotated[
    str,
    Path(
        description="The name requests ask for.",
        json_schema_extra={"pattern": f"^{ID_PATTERN.pattern}$"},
    ),
]
_FILE = "application/octet-stream"
_BODIES = {
    "requestBody": {
        "required": True,
        "description": "A persona file, at most 16 MiB; or, as JSON, what a persona is to be made of.",
        "content": {
            _FILE: {
                "schema": {"type": "string", "format": "binary"},
                "examples": {
                    "file": {
                        "summary": "The bytes of a file that palign-fit wrote",
                        "value": "(the bytes of alice.safetensors)",
                    }
                },
            },
            "application/json": enrolment.BODY,
        },
    }
}


@router.get("", summary="List personas", response_model=PersonaList, responses=errors(400))
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
) -> Response:
    """The caller's own personas and those shared with it, sorted by id."""
    front_end, tenant = who(request)
    if after:
        _check_id(after, "after")

    def listed() -> bytes:
        # Written here, not on the event loop: a thousand of them take tens of milliseconds.
        page = front_end.resolver.registry.page(tenant, limit=limit, after=after)
        data = [PersonaSummary(**_facts(record, tenant)) for record in page.records]
        found = PersonaList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=page.has_more,
        )
        return found.model_dump_json().encode()

    return Response(await front_end.manage(listed, tenant), media_type="application/json")


@router.get(
    "/{persona_id}",
    summary="Read one persona: its metadata, or its file",
    response_model=PersonaObject,
    responses={
        **errors(400, 403, 404),
        200: {
            "description": "Metadata and digest; the file, if that is what is accepted.",
            "content": {_FILE: {"schema": {"type": "string", "format": "binary"}}},
        },
    },
)
async def get_persona(request: Request, persona_id: Id) -> Response:
    """Its metadata and digest. With `Accept: application/octet-stream` the file itself, to whoever may replace it: it
    is its person's answers in another form."""
    front_end, tenant = who(request)
    _check_id(persona_id, "id")
    registry = front_end.resolver.registry
    whole_file = _FILE in request.headers.get("accept", "").lower()
    if whole_file:
        tenant.require("manage")

    def read() -> bytes:
        record, data = registry.read(tenant, persona_id)
        request.scope["palign_digest"] = record.digest
        if not whole_file:
            return _whole(record, Persona.from_bytes(data), data, tenant)
        if not _owns(tenant, record):
            raise PersonaForbidden(
                f"persona {persona_id!r} is shared with you; only its owner gets the file"
            )
        return data

    kind = _FILE if whole_file else "application/json"
    return Response(await front_end.manage(read, tenant), media_type=kind)


@router.put(
    "/{persona_id}",
    summary="Register a persona file, or make a persona of answers",
    response_model=PersonaObject,
    responses={
        **errors(400, 403, 409, 413, 501, 507),
        200: {"description": "The same bytes as before, or replaced."},
        201: {"model": PersonaObject, "description": "Registered."},
    },
    openapi_extra=_BODIES,
)
async def put_persona(
    request: Request,
    persona_id: Id,
    replace: Annotated[
        bool, Query(description="Replace other bytes under this id instead of answering 409.")
    ] = False,
) -> Response:
    """201: new. 200: the same bytes again, or replaced. Served by every server of this registry at once;
    requests that are running finish with the bytes they began with. The same answers make the same bytes."""
    front_end, tenant = who(request)
    tenant.require("manage")
    _check_id(persona_id, "id")
    bring = _enrol if enrolment.is_json(request) else _upload
    answer, outcome = await bring(request, persona_id, front_end, tenant, replace)
    status = 201 if outcome is Outcome.CREATED else 200
    return Response(answer, status, media_type="application/json")


async def _upload(
    request: Request, name: str, front_end: FrontEnd, tenant: Tenant, replace: bool
) -> tuple[bytes, Outcome]:
    """Register the file that is the body as ``name``. Returns the reply's JSON."""
    data = await read_bounded(request, MAX_FILE_BYTES)

    def put() -> tuple[bytes, Outcome]:
        persona = Persona.from_bytes(data, source=f"persona {name!r}")
        answer, outcome = _register(request, name, front_end, tenant, replace, persona, data)
        if outcome is not Outcome.UNCHANGED and is_foreign(persona, front_end.model):
            warn_foreign({name: persona.base_model}, front_end.model)
        return answer, outcome

    return await front_end.manage(put, tenant)


async def _enrol(
    request: Request, name: str, front_end: FrontEnd, tenant: Tenant, replace: bool
) -> tuple[bytes, Outcome]:
    """The same with a persona that is made of what the body says, of which nothing else is kept."""
    directions = enrolment.require(front_end.directions)
    body = await read_bounded(request, enrolment.most_bytes(directions))

    def make() -> tuple[bytes, Outcome]:
        asked = Enrolment.read(body)
        request.scope["palign_made_of"] = asked.made_of
        persona = asked.persona(directions, name)
        data = persona.to_bytes()
        return _register(request, name, front_end, tenant, replace, persona, data)

    began = time.perf_counter()
    done: metrics.Enrolled = "failed"
    try:
        answer, outcome = await front_end.manage(make, tenant)
        done = outcome.value
        return answer, outcome
    except PalignError as error:
        done = "refused" if error.status < 500 else "failed"
        raise
    finally:
        metrics.enrolled(done, time.perf_counter() - began)


def _register(
    request: Request,
    name: str,
    front_end: FrontEnd,
    tenant: Tenant,
    replace: bool,
    persona: Persona,
    data: bytes,
) -> tuple[bytes, Outcome]:
    resolver = front_end.resolver
    resolver.shape.check(persona, name)
    record, outcome = resolver.registry.put(tenant, name, persona, data, replace=replace)
    if outcome is not Outcome.UNCHANGED:
        resolver.changed(tenant.name, name, replaced=outcome is Outcome.REPLACED)
    request.scope.update({"palign_digest": record.digest, "palign_outcome": outcome.value})
    return _whole(record, persona, data, tenant), outcome


@router.delete(
    "/{persona_id}",
    summary="Remove a persona",
    status_code=204,
    responses=errors(400, 403, 404),
)
async def delete_persona(request: Request, persona_id: Id) -> Response:
    """Requests that are running finish with it, later ones get 404."""
    front_end, tenant = who(request)
    tenant.require("manage")
    _check_id(persona_id, "id")
    resolver = front_end.resolver

    def remove() -> Record:
        record = resolver.registry.delete(tenant, persona_id)
        # Other processes drop it within half a minute, see ``admission/forgetting.py``.
        resolver.forget({record.digest})
        return record

    record = await front_end.manage(remove, tenant)
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


def _check_id(name: str, param: str) -> None:
    if not is_persona_id(name):
        raise PersonaInvalid(
            f"{param}: got {ascii(name)[:80]}, wanted a persona id: 1 to 128 of A-Z a-z 0-9 . _ -, "
            "beginning with a letter or digit",
            param=param,
        )


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
    would stop every other request while they are written again. Whoever may not have the file gets it without
    what tells the trait values that a persona was made of."""
    facts = _facts(record, tenant)
    short = ("name", "description", "base_model", "method")
    whole = PersonaObject(**facts | {field: getattr(persona, field) for field in short}, fit={})
    text = whole.model_dump_json().encode()
    place = next(member for member in members(text) if member.name == "fit")
    fit = _fit(data)
    if not (tenant.may_manage and _owns(tenant, record)):
        fit = _without_values(fit)
    return b"".join((text[: place.value], fit, text[place.end :]))


def _owns(tenant: Tenant, record: Record) -> bool:
    return record.tenant == tenant.name


def _without_values(fit: bytes) -> bytes:
    """Without what tells the trait values: themselves, and what each of them does."""
    within = [*members(fit)]
    if all(member.name != "sliders" for member in within):
        return fit
    kept = [fit[one.start : one.end] for one in within if one.name not in ("sliders", "effects")]
    return b"{" + b",".join(kept) + b"}"


def _fit(data: bytes) -> bytes:
    """The JSON text of ``fit`` in the header of a persona file."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["__metadata__"]["palign"].encode()
    place = next(member for member in members(header) if member.name == "fit")
    return bytes(header[place.value : place.end])
