#!/usr/bin/env bash
# The same with curl. `make serve` first; OPENAI_BASE_URL points elsewhere.
set -euo pipefail
base="${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}"
model=$(curl -fsS "$base/models" | python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])')

ask() {
  curl -fsS -D - "$base/chat/completions" -H 'content-type: application/json' -d "$1" | grep -iE '^x-palign|"content"'
  echo
}

echo "# body field"
ask '{"model": "'"$model"'", "persona": {"id": "alice", "strength": 1.0}, "max_tokens": 30, "temperature": 0,
      "messages": [{"role": "user", "content": "How do you feel about meeting new people?"}]}'
echo "# model suffix"
ask '{"model": "'"$model"'@bob", "max_tokens": 30, "temperature": 0,
      "messages": [{"role": "user", "content": "How do you feel about meeting new people?"}]}'
echo "# an unknown persona is an error, never a plain answer"
curl -sS "$base/chat/completions" -H 'content-type: application/json' \
  -d '{"model": "'"$model"'", "persona": "nobody", "messages": [{"role": "user", "content": "Hi"}]}'
echo
