"""palign-fit unpack: persona files out of shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import with_exit_codes
from palign_fit.errors import InputError
from palign_fit.inputs.files import write_bytes
from palign_fit.output import shards
from palign_fit.output.folder import SUFFIX, check_folder, writing


@with_exit_codes
def unpack(
    shard: Annotated[Path, typer.Argument(help="A shard, or a folder of shards.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to put the persona files into.")],
    names: Annotated[list[str] | None, typer.Argument(help="Which personas; default: all.")] = None,
    as_json: options.Json = False,
) -> None:
    """Take persona files out of the shards that run --shards wrote."""
    files = shards.shards_in(shard) if shard.is_dir() else [shard]
    if not files:
        raise InputError(f"{shard}: is a folder without shards (personas-00000.zip and so on)")
    check_folder(out, out)
    inside = {file: shards.names(file) for file in files}
    missing = set(names or ()).difference(*inside.values())
    if missing:
        raise InputError(f"{shard}: holds no persona {', '.join(sorted(missing)[:5])[:300]}")
    paths = []
    for file, held in inside.items():
        for name, data in shards.read(file, [one for one in held if not names or one in names]):
            path = out / f"{name}{SUFFIX}"
            with writing(path):
                out.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
            paths.append(str(path))
    if as_json:
        print(json.dumps({"personas": paths}))
    else:
        print(f"{len(paths)} persona file(s) in {out}")
