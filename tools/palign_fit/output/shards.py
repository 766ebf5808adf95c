"""Shards: many personas in one uncompressed zip file, for populations.

A shard holds ID.safetensors, byte for byte the file a folder would hold, for a stretch of the answers
file, and ``report.jsonl`` with one line a subject, also for those that were skipped. Any zip tool opens
it; the zip's own directory finds a member by name without reading the others.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from palign_fit.errors import InputError
from palign_fit.inputs.answers import Refusal, Subject
from palign_fit.output.folder import SUFFIX, InUse, check_folder, writing
from palign_fit.output.population import Fitted, Outcome, Work, as_line
from vllm_palign.files import replacing
from vllm_palign.persona import MAX_FILE_BYTES, Persona, is_persona_id

FORMAT = "palign.shard"
REPORT = "report.jsonl"
MAX_SHARD = 100_000

_NAME = re.compile(r"personas-(\d{5})\.zip")
_EPOCH = (1980, 1, 1, 0, 0, 0)


class ShardOutput:
    """``out``/personas-00000.zip and so on, ``unit`` subjects of the answers file in each.

    Raises InputError for a folder that holds shards this run would not replace.
    """

    def __init__(self, out: Path, unit: int, subjects: int) -> None:
        if not 1 <= unit <= MAX_SHARD:
            raise InputError(f"--shards {unit}: wanted 1 to {MAX_SHARD} personas a shard")
        check_folder(out, out)
        self.folder, self.unit = out, unit
        self._next = 0
        self._use = InUse(out)
        count = -(-subjects // unit)
        others = [one.name for one in shards_in(out) if int(one.name[9:14]) >= count]
        if others:
            raise InputError(
                f"--out {out}: holds {len(others)} shard(s) beyond the {count} of this run, such as "
                f"{others[0]}: of another run. Delete them or give another folder"
            )

    def write(self, subjects: Sequence[Subject], work: Work) -> Iterator[Outcome]:
        """The next shard: kept if it was made from the same inputs, else written in one step."""
        self._use.take()
        path = self.folder / f"personas-{self._next:05d}.zip"
        self._next += 1
        inputs = sha256("".join(map(work.job.inputs, subjects)).encode()).hexdigest()
        kept = _kept(path, inputs)
        if kept is not None:
            yield from kept
            return
        # Settings that cannot be fitted are refused before anything is there.
        work.prepare()
        lines: list[str] = []
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._use.take()
        with (
            writing(path),
            replacing(path) as part,
            zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as shard,
        ):
            for subject in subjects:
                result = work.fit(subject)
                outcome: Outcome
                if isinstance(result, Refusal):
                    outcome = result
                else:
                    _add(shard, f"{subject.id}{SUFFIX}", result.to_bytes())
                    outcome = Fitted.of(result, subject.id, str(path.name), kept=False)
                lines.append(as_line(outcome))
                yield outcome
            _add(shard, REPORT, "".join(f"{line}\n" for line in lines).encode())
            shard.comment = json.dumps({"format": FORMAT, "inputs": inputs}).encode()

    def close(self) -> None:
        self._use.release()


def shards_in(folder: Path) -> list[Path]:
    """The shards of a folder, in order."""
    return sorted(one for one in folder.glob("personas-*.zip") if _NAME.fullmatch(one.name))


def names(shard: Path) -> list[str]:
    """Ids of the personas in ``shard``. Raises InputError for a file that is none."""
    with _opened(shard) as held:
        return [name.removesuffix(SUFFIX) for name in held.namelist() if name != REPORT]


def read(shard: Path, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Id and file bytes, checked, of the ``wanted`` personas of ``shard``.

    Raises InputError for a member that is missing or broken, PersonaInvalid for one that is no persona.
    """
    with _opened(shard) as held:
        for name in wanted:
            try:
                member = held.getinfo(f"{name}{SUFFIX}")
                # Nothing here is compressed, so that no member can be larger than the file.
                if member.file_size > MAX_FILE_BYTES or member.compress_type != zipfile.ZIP_STORED:
                    raise zipfile.BadZipFile("too large, or compressed")
                data = held.read(member)
            except KeyError:
                raise InputError(f"{shard}: holds no persona {name[:128]!r}") from None
            except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
                raise InputError(f"{shard}: {name[:128]!r} cannot be read: {error}") from error
            Persona.from_bytes(data, source=f"{shard}: {name}")
            yield name, data


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        shard = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a shard: {error}") from error
    right = all(
        name == REPORT or (name.endswith(SUFFIX) and is_persona_id(name.removesuffix(SUFFIX)))
        for name in shard.namelist()
    )
    if not right or _comment(shard).get("format") != FORMAT:
        shard.close()
        raise InputError(f"{path}: is a zip file but no shard of palign-fit run --shards")
    return shard


def _comment(shard: zipfile.ZipFile) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        found = json.loads(shard.comment)
        return found if isinstance(found, dict) else {}
    return {}


def _add(shard: zipfile.ZipFile, name: str, data: bytes) -> None:
    """A member without the time of day, so that the same personas give the same shard."""
    member = zipfile.ZipInfo(name, _EPOCH)
    member.external_attr = 0o644 << 16
    shard.writestr(member, data)


def _kept(path: Path, inputs: str) -> list[Outcome] | None:
    """What a finished shard of the same inputs reports; None if there is none."""
    with suppress(InputError, zipfile.BadZipFile, OSError, ValueError, TypeError, KeyError):
        with _opened(path) as held:
            if _comment(held).get("inputs") != inputs:
                return None
            rows = [json.loads(line) for line in held.read(REPORT).splitlines()]
        return [
            Refusal(**row) if "reason" in row else Fitted(**row | {"kept": True}) for row in rows
        ]
    return None
