"""Python's own urllib, which sends CONNECT as HTTP/1.0: asks BASE_URL with API_KEY. Prints the answer."""

import json
import os
import sys
import urllib.request

request = urllib.request.Request(
    os.environ["BASE_URL"] + "/chat/completions",
    data=json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode(),
    headers={"authorization": f"Bearer {os.environ['API_KEY']}", "content-type": "application/json"},
)
with urllib.request.urlopen(request) as answer:
    sys.stdout.write(answer.read().decode())
