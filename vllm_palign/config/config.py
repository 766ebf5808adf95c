"""The one configuration object, read from ``additional_config["palign"]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vllm_palign.errors import PalignStartupError
from vllm_palign.persona import Scope, is_persona_id

MAX_STRENGTH = 3.0
STORE_TIMEOUT = 5.0
CACHE_MIB = 256
SCOPE: Scope = "answers"


class PalignConfig(BaseModel):
    """``{"personas": {"alice": "alice.safetensors"}, "max_strength": 3.0}``; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    personas: dict[str, str] = Field(default_factory=dict)
    """Served name -> path of the persona file, or ``hf://owner/repo[@revision][/file]``."""
    store: str | None = None
    """URL of the registry, ``sqlite:///FILE`` or ``postgresql://...``; None: one of this server's own,
    that goes when the server goes."""
    store_timeout: float = Field(default=STORE_TIMEOUT, gt=0, le=600, allow_inf_nan=False)
    """Seconds to wait for the registry."""
    cache_mib: int = Field(default=CACHE_MIB, ge=1)
    """Most MiB of persona content that each front-end process keeps in memory."""
    tenants: str | None = None
    """Path of the tenants file; None: one tenant, everybody."""
    directions: str | None = None
    """Path or ``hf://owner/repo[@revision][/file]`` of what the served model needs to make personas of answers;
    None: only persona files are taken."""
    max_strength: float = Field(default=MAX_STRENGTH, gt=0, le=1000, allow_inf_nan=False)
    """Bound of |strength| and of sum |strength x weight|; beyond it a request is refused."""
    scope: Scope = SCOPE
    """Which tokens are steered where a request does not say."""

    @field_validator("personas", mode="before")
    @classmethod
    def _paths(cls, personas: Any) -> Any:
        """Offline users may give ``Path`` objects."""
        if not isinstance(personas, dict):
            return personas
        return {
            name: str(path) if isinstance(path, Path) else path for name, path in personas.items()
        }

    @field_validator("directions", mode="before")
    @classmethod
    def _path(cls, directions: Any) -> Any:
        return str(directions) if isinstance(directions, Path) else directions

    @field_validator("personas")
    @classmethod
    def _names(cls, personas: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in personas if not is_persona_id(name)]
        if wrong:
            raise ValueError(
                f"{wrong} cannot name personas; wanted 1 to 128 of A-Z a-z 0-9 . _ -, "
                "beginning with a letter or digit"
            )
        return personas

    @classmethod
    def read(cls, additional_config: Any) -> PalignConfig:
        """The ``palign`` entry of vLLM's ``additional_config``. Raises PalignStartupError."""
        if not isinstance(additional_config, dict):
            raise PalignStartupError(
                f"additional_config is {type(additional_config).__name__}, palign needs a dict"
            )
        try:
            return cls.model_validate(additional_config.get("palign", {}))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'palign'}: {problem['msg']}"
                for problem in error.errors()
            )
            raise PalignStartupError(f'additional_config["palign"]: {problems}') from None
