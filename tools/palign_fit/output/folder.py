"""A folder of persona files, or one file: where a run puts them, and what it finds there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from palign_fit.errors import InputError
from palign_fit.inputs.answers import Refusal, Subject
from palign_fit.output.population import Fitted, Job, Outcome, Work
from vllm_palign.errors import PersonaInvalid
from vllm_palign.files import PART
from vllm_palign.persona import Persona, load, save

SUFFIX = ".safetensors"


class FolderOutput:
    """One file a persona: ``out``/ID.safetensors, or ``out`` itself if it is named like a file."""

    unit = 1
    """A persona is written when it is made: a killed run loses the one it was at."""

    def __init__(self, out: Path, subjects: int) -> None:
        self.file = out if out.suffix == SUFFIX and not out.is_dir() else None
        self.folder = out.parent if self.file else out
        if self.file and subjects > 1:
            raise InputError(
                f"--out {out}: is one file and the answers hold {subjects} subjects; "
                "give a folder, which gets one file each"
            )
        check_folder(self.folder, out)
        if self.file and self.file.is_dir():
            raise InputError(f"--out {out}: a folder stands where a persona file would go")
        self._use = InUse(self.folder)

    def path(self, subject: Subject) -> Path:
        return self.file or self.folder / f"{subject.id}{SUFFIX}"

    def write(self, subjects: Sequence[Subject], work: Work) -> Iterator[Outcome]:
        """Fit and save those that are not there with the same inputs."""
        self._use.take()
        for subject in subjects:
            path = self.path(subject)
            kept = self._kept(subject, work.job)
            if kept is not None:
                yield Fitted.of(kept, subject.id, str(path), kept=True)
                continue
            result = work.fit(subject)
            if isinstance(result, Refusal):
                yield result
                continue
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._use.take()
                save(result, path)
            yield Fitted.of(result, subject.id, str(path), kept=False)

    def close(self) -> None:
        self._use.release()

    def _kept(self, subject: Subject, job: Job) -> Persona | None:
        """The persona that is there already, made from the same inputs."""
        with suppress(PersonaInvalid):
            found = load(self.path(subject))
            if found.fit.get("inputs") == job.inputs(subject):
                return found
        return None


def check_folder(folder: Path, out: Path) -> None:
    """Refuse, before any work is done, a folder that cannot be made."""
    taken = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not taken.is_dir():
        raise InputError(f"--out {out}: {taken} is there and is not a folder")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses is the user's to mend: InputError naming the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


class InUse:
    """Says to other runs that a folder is being written to; sweeps it when nobody else writes there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: int | None = None

    def take(self) -> None:
        """Once the folder is there: delete what a killed run left half-written."""
        if self._held is not None or not self.folder.is_dir():
            return
        self._held = os.open(self.folder, os.O_RDONLY)
        with suppress(OSError):  # taken by another run, or a file system without locks
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for part in self.folder.glob(f".*{PART}"):
                part.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(self._held, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None
