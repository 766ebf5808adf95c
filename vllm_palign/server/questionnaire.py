"""``GET /v1/questionnaire``: what a form needs whose answers are to become a persona."""

from __future__ import annotations

import functools
import json
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from vllm_palign.directions import Directions
from vllm_palign.errors import MethodNotOffered, NotOffered
from vllm_palign.server.enrolment import require
from vllm_palign.server.routes import Route, errors, who


class Item(BaseModel):
    """One item; ``text`` completes "I ..."."""

    id: str
    text: str
    trait: Literal["O", "C", "E", "A", "N"]
    facet: str
    key: Literal["+", "-"]


class Questionnaire(BaseModel):
    """The items that ``answers`` may hold."""

    object: Literal["list"] = "list"
    data: list[Item]
    scale: dict[str, str]
    """Answer to its label."""
    short: dict[str, list[str]]
    """Which ids to ask where there is time for ten, thirty or sixty."""
    usual: dict[str, float]
    """What people answer on average, by id."""


router = APIRouter(tags=["personas"], route_class=Route)


@router.get(
    "/v1/questionnaire",
    summary="What to ask",
    response_model=Questionnaire,
    responses={
        **errors(400, 501),
        304: {"description": "The same as the caller has, by its `If-None-Match`."},
    },
)
async def get_questionnaire(request: Request) -> Response:
    """Items, the labels of their scale, and which to ask if there is little time."""
    front_end, _ = who(request)
    directions = require(front_end.directions)
    tag = f'"{directions.digest}"'
    # Whoever may not ask any more must not find it in a common cache.
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    known = request.headers.get("if-none-match", "")
    if tag in [part.strip().removeprefix("W/") for part in known.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(_body(directions), media_type="application/json", headers=headers)


@router.api_route(
    "/v1/questionnaire", methods=["POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
)
async def no_such_method() -> None:
    raise MethodNotOffered("only GET is offered here")


@router.api_route(
    "/v1/questionnaire/{rest:path}",
    methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
    include_in_schema=False,
)
async def no_such_path() -> None:
    raise NotOffered("there is no such path; the questionnaire is at /v1/questionnaire")


@functools.lru_cache(maxsize=1)
def _body(directions: Directions) -> bytes:
    """Written once: directions do not change while a server runs."""
    return json.dumps(
        directions.questionnaire(), ensure_ascii=False, separators=(",", ":")
    ).encode()
