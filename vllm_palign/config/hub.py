"""Files from the Hugging Face hub, of personas or directions: ``hf://owner/repo[@revision][/file]``.

Everything is pinned to the commit that the revision (``main`` unless given) names when the server starts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_palign.errors import PalignStartupError
from vllm_palign.persona import MAX_FILE_BYTES, SUFFIX

_URL = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[^@]+))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Reference:
    repo: str
    revision: str | None
    file: str | None

    @classmethod
    def parse(cls, url: str) -> _Reference:
        parts = _URL.fullmatch(url)
        if parts is None:
            raise PalignStartupError(f"{url}: wanted hf://owner/repo[@revision][/file{SUFFIX}]")
        return cls(parts["repo"], parts["revision"], parts["file"])

    def at(self, commit: str, file: str) -> str:
        return f"hf://{self.repo}@{commit}/{file}"


def is_hub(source: str) -> bool:
    return source.startswith("hf://")


def contents(url: str) -> dict[str, str]:
    """File name -> pinned URL of every persona file at the top of the repository.

    Raises PalignStartupError if there is none, or the hub cannot be asked.
    """
    reference = _Reference.parse(url)
    if reference.file is not None:
        return {Path(reference.file).name: pin(url)}
    info = _info(reference, url)
    files = [file.rfilename for file in info.siblings if _is_top(file.rfilename)]
    if not files:
        raise PalignStartupError(f"{url}: no {SUFFIX} files at the top of this repository")
    return {file: reference.at(info.sha, file) for file in sorted(files)}


def pin(url: str) -> str:
    """``url`` of one file with its commit. Without a file the repository must hold exactly one.

    Raises PalignStartupError.
    """
    reference = _Reference.parse(url)
    if reference.file is not None and _COMMIT.fullmatch(reference.revision or ""):
        return url
    info = _info(reference, url)
    files = [file.rfilename for file in info.siblings]
    if reference.file is None:
        files = [file for file in files if _is_top(file)]
        if len(files) != 1:
            raise PalignStartupError(
                f"{url}: holds {len(files)} {SUFFIX} files at its top; name one: {url}/FILE{SUFFIX}"
            )
    elif reference.file not in files:
        raise PalignStartupError(f"{url}: there is no such file at commit {info.sha}")
    return reference.at(info.sha, reference.file or files[0])


def download(url: str, *, most_bytes: int = MAX_FILE_BYTES) -> Path:
    """The file that ``url`` names, in the hub's local cache; nothing over ``most_bytes`` is fetched.

    Raises PalignStartupError.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    reference = _Reference.parse(pin(url))
    file, revision = str(reference.file), reference.revision
    cached = try_to_load_from_cache(reference.repo, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    sizes = {entry.rfilename: entry.size for entry in _info(reference, url).siblings}
    if (sizes.get(file) or 0) > most_bytes:
        raise PalignStartupError(
            f"{url}: holds {sizes[file]} bytes, wanted at most {most_bytes} ({most_bytes >> 20} MiB)"
        )
    try:
        return Path(hf_hub_download(reference.repo, file, revision=revision))
    except (OSError, ValueError) as error:
        raise PalignStartupError(f"{url}: cannot be downloaded: {error}") from error


def _info(reference: _Reference, url: str) -> Any:
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(
            reference.repo, revision=reference.revision, files_metadata=True, timeout=30
        )
    except (OSError, ValueError) as error:  # HfHubHTTPError and no network are OSErrors
        raise PalignStartupError(f"{url}: the hub cannot be asked: {error}") from error


def _is_top(file: str) -> bool:
    return file.endswith(SUFFIX) and "/" not in file and not file.startswith(".")
