#!/usr/bin/env bash
# The same with curl: ten answers, a persona, a chat. OPENAI_BASE_URL points elsewhere.
set -euo pipefail
base="${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}"
json='content-type: application/json'
model=$(curl -fsS "$base/models" | python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])')

echo "# ten items; here they are answered 5, 1, 5, 1, ..."
answers=$(curl -fsS "$base/questionnaire" | python3 -c '
import json, sys
form = json.load(sys.stdin)
texts = {item["id"]: item["text"] for item in form["data"]}
answers = {item: 5 - place % 2 * 4 for place, item in enumerate(form["short"]["10"])}
print(*(f"I {texts[item]}: {answer}" for item, answer in answers.items()), sep="\n", file=sys.stderr)
print(json.dumps(answers))')
echo "# the persona"
curl -fsS -X PUT "$base/personas/me?replace=true" -H "$json" -d "{\"answers\": $answers}"
echo
echo "# a chat"
curl -fsS -D - "$base/chat/completions" -H "$json" -d '{"model": "'"$model"'", "persona": "me", "max_tokens": 30,
  "messages": [{"role": "user", "content": "Do you like parties?"}]}' | grep -iE '^x-palign|"content"'
echo
curl -fsS -X DELETE "$base/personas/me"
