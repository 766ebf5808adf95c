"""Walk from one personality to another: blends of alice and bob, all in one batch.

make serve
python examples/blend.py
"""

import asyncio
import os

from openai import AsyncOpenAI

QUESTION = "A friend invites you to a big party. How do you feel?"


async def main():
    client = AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = (await client.models.list()).data[0].id

    async def ask(alice):
        mix = {"alice": alice, "bob": round(1 - alice, 2)}
        reply = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=40,
            temperature=0,
            extra_body={"persona": {"mix": mix, "strength": 1.0}},
        )
        return mix, reply.choices[0].message.content

    for mix, text in await asyncio.gather(*(ask(share) for share in (1.0, 0.75, 0.5, 0.25, 0.0))):
        print(f"--- {mix}\n{text}\n")


asyncio.run(main())
