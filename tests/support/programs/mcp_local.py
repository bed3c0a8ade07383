"""A server of MCP on standard input and output, in /usr's own Python: one tool, `where`, which gives its arguments."""

import json
import sys

TOOL = {"name": "where", "description": "Says where.", "inputSchema": {"type": "object", "properties": {}}}

for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    params = asked.get("params", {})
    results = {
        "initialize": {
            "protocolVersion": params.get("protocolVersion"),
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "local", "version": "1"},
        },
        "tools/list": {"tools": [TOOL]},
        "tools/call": {"content": [{"type": "text", "text": f"called with {sys.argv[1:]}"}]},
        "ping": {},
    }
    answer = {"jsonrpc": "2.0", "id": asked["id"]}
    if asked["method"] in results:
        answer["result"] = results[asked["method"]]
    else:
        answer["error"] = {"code": -32601, "message": "not known"}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
