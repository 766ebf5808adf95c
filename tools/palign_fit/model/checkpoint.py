"""What a checkpoint is, by content: the sha256 of its weights, configuration and tokenizer."""

from __future__ import annotations

import json
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palign_fit.errors import InputError
from palign_fit.inputs.files import write_text

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

_WEIGHTS = ".safetensors"
_SMALL = (".json", ".jinja", ".model", ".txt", ".tiktoken")


def digest(model: OpenedModel, memory: Path | None) -> str:
    """sha256 in hex of the checkpoint that ``model`` was loaded from, whatever its folder is called.

    Files are read once: their hashes are remembered in the folder ``memory`` by path, size and time of
    change, so that a large model costs its reading only once. A model without files is hashed in memory.
    """
    folder = _folder(str(model.model.name_or_path or ""))
    if folder is None:
        return _in_memory(model)
    known = _Remembered(memory)
    parts = {
        path.name: known.digest(path)
        for path in sorted(folder.iterdir())
        if path.suffix in (_WEIGHTS, *_SMALL) and path.is_file()
    }
    known.save()
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _folder(source: str) -> Path | None:
    """Where the files of a checkpoint are: the folder itself, or a snapshot in the hub's cache."""
    if not source:
        return None
    if Path(source).is_dir():
        found = Path(source)
    else:
        from transformers.utils import cached_file

        with suppress(OSError, ValueError):
            name = cached_file(source, "config.json", local_files_only=True)
            found = Path(str(name)).parent
            return found if any(found.glob(f"*{_WEIGHTS}")) else None
        return None
    return found if any(found.glob(f"*{_WEIGHTS}")) else None


def _in_memory(model: OpenedModel) -> str:
    import torch

    found = sha256(model.model.config.to_json_string().encode())
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    found.update((backend.to_str() if backend else repr(model.tokenizer)).encode())
    found.update(str(getattr(model.tokenizer, "chat_template", "")).encode())
    for name, tensor in sorted(model.model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


class _Remembered:
    """Hashes of files by (path, size, time of change), in one small file."""

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / "files.json" if folder else None
        self.known: dict[str, Any] = {}
        self.changed = False
        if self.path is not None:
            with suppress(OSError, ValueError):  # a broken memory only costs time
                found = json.loads(self.path.read_text())
                self.known = found if isinstance(found, dict) else {}

    def digest(self, path: Path) -> str:
        path = path.resolve()
        state = path.stat()
        mark = [state.st_size, state.st_mtime_ns]
        held = self.known.get(str(path))
        if (
            isinstance(held, list)
            and len(held) == 3
            and held[:2] == mark
            and isinstance(held[2], str)
        ):
            return held[2]
        with path.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
        self.known[str(path)] = [*mark, found]
        self.changed = True
        return found

    def save(self) -> None:
        if self.path is None or not self.changed:
            return
        with suppress(OSError, InputError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            kept = {path: held for path, held in self.known.items() if Path(path).exists()}
            write_text(self.path, json.dumps(kept))
