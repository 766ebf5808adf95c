"""One question, answered plainly and by two personas, through the OpenAI client.

    make serve
    python examples/chat.py ["Your question"]

OPENAI_BASE_URL points elsewhere than http://127.0.0.1:8000/v1.
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id
question = (
    sys.argv[1] if len(sys.argv) > 1 else "A friend invites you to a big party. How do you feel?"
)
messages = [{"role": "user", "content": question}]


def ask(**options):
    reply = client.chat.completions.with_raw_response.create(
        **{"model": model, "messages": messages, "max_tokens": 60, "temperature": 0, **options}
    )
    return reply.parse().choices[0].message.content, reply.headers.get("x-palign-persona")


# Three ways to ask for a persona. Use the one your client allows.
for who, options in {
    "plain": {},
    "alice, body field": {"extra_body": {"persona": "alice"}},
    "bob, half as strong": {"extra_body": {"persona": {"id": "bob", "strength": 0.5}}},
    "bob, OpenAI metadata": {"metadata": {"persona": "bob", "persona_strength": "1.0"}},
    "alice, as a model name": {"model": f"{model}@alice"},
}.items():
    text, header = ask(**options)
    print(f"--- {who} [{header or 'no persona'}]\n{text}\n")
