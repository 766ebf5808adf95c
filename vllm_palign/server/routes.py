"""What all of palign's routes have in common: who asks, and errors as OpenAI's objects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.errors import PalignError, PersonaInvalid, PersonaTooLarge
from vllm_palign.tenants import caller
from vllm_palign.tenants.tenant import Tenant


class ErrorInfo(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | int | None


class Error(BaseModel):
    """OpenAI's error object."""

    error: ErrorInfo


class Route(APIRoute):
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


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error replies of a route, for its OpenAPI document; every route has 500 and 503."""
    return {status: {"model": Error} for status in (*statuses, 500, 503)}


def who(request: Request) -> tuple[FrontEnd, Tenant]:
    """This server's front end, and the caller."""
    front_end: FrontEnd = request.app.state.palign
    return front_end, caller.current(tenants=front_end.tenants is not None)


async def read_bounded(request: Request, most: int) -> bytes:
    """The body. Raises PersonaTooLarge as soon as it is known to hold more than ``most`` bytes."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isascii() and announced.isdigit() else 0
    body = bytearray()
    if size <= most:
        try:
            async for chunk in request.stream():
                body += chunk
                size = len(body)
                if size > most:
                    break
        except ClientDisconnect:  # nobody reads the answer, but the audit log does
            raise PersonaInvalid(f"the upload broke off after {len(body)} bytes") from None
    if size > most:
        bound = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
        raise PersonaTooLarge(f"the body is larger than {most} bytes ({bound})")
    return bytes(body)


def _invalid(error: RequestValidationError) -> PersonaInvalid:
    first = error.errors()[0]
    param = str(first["loc"][-1])
    return PersonaInvalid(f"{param}: {first['msg']}", param=param)
