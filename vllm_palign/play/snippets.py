"""A request of the page as a program: for a shell and for Python. Keys stay out of both."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pprint import pformat
from typing import Any


def curl(url: str, body: Mapping[str, Any]) -> str:
    text = json.dumps(body, indent=1, ensure_ascii=False)
    return (
        f"curl {url}/v1/chat/completions \\\n"
        '  -H "Authorization: Bearer $PALIGN_API_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(text)}\n"
    )


def python(url: str, body: Mapping[str, Any]) -> str:
    arguments = {name: value for name, value in body.items() if name != "persona"}
    if "persona" in body:
        arguments["extra_body"] = {"persona": body["persona"]}
    lines = "".join(
        f"    {name}={pformat(value, width=88, sort_dicts=False, indent=1)},\n".replace(
            "\n ", "\n     "
        )
        for name, value in arguments.items()
    )
    return (
        "import os\n\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{url}/v1", api_key=os.environ.get("PALIGN_API_KEY", "none"))\n'
        f"reply = client.chat.completions.create(\n{lines})\n"
        "print(reply.choices[0].message.content)\n"
    )
