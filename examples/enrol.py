"""Ten questions, and the model answers as whoever answered them.

    vllm serve MODEL --plugin palign --palign-directions directions.safetensors
    python examples/enrol.py

OPENAI_BASE_URL points elsewhere than http://127.0.0.1:8000/v1.
"""

import os

import httpx

base = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
key = os.environ.get("OPENAI_API_KEY", "none")
web = httpx.Client(base_url=base, headers={"authorization": f"Bearer {key}"}, timeout=120)

form = web.get("questionnaire").raise_for_status().json()
print("How well does it describe you?", form["scale"])
texts = {item["id"]: item["text"] for item in form["data"]}
answers = {item: int(input(f"I {texts[item]}: ")) for item in form["short"]["10"]}
# The same answers again are the same persona; others under this name want the parameter.
reply = web.put("personas/me", params={"replace": "true"}, json={"answers": answers})
made = reply.raise_for_status().json()
print("made", made["digest"][:12], "warnings", made["fit"]["warnings"])
model = web.get("models").json()["data"][0]["id"]
question = {"role": "user", "content": "It is Friday evening. What do you feel like doing?"}
body = {"model": model, "persona": "me", "messages": [question], "max_tokens": 60}
print(web.post("chat/completions", json=body).json()["choices"][0]["message"]["content"])
web.delete("personas/me").raise_for_status()  # the answers were never kept, now nothing is
