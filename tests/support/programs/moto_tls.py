"""moto's server over TLS on a free port of loopback; `/asked` tells, as JSON, what it was asked.

Settings come in, and the port goes out, as server_process.py has it.
"""

from __future__ import annotations

import io
import json
import ssl
import sys
import threading
from typing import Any
from urllib.parse import parse_qs

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def main() -> None:
    """Serve until standard input ends."""
    settings = json.loads(sys.stdin.readline())
    aws = DomainDispatcherApplication(create_backend_app)
    calls: list[dict[str, str]] = []

    def served(environ: dict[str, Any], start: Any) -> Any:
        if environ["PATH_INFO"] == "/asked":
            start("200 OK", [("content-type", "application/json")])
            return [json.dumps(calls).encode()]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        form = parse_qs(body.decode(errors="replace"))
        signed = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]
        calls.append(
            {
                "action": form.get("Action", [""])[0],
                "key_id": signed,
                "session": form.get("RoleSessionName", [""])[0],
            }
        )
        return aws(environ, start)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings["pair"])
    server = make_server("127.0.0.1", 0, served, threaded=True, ssl_context=context)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(json.dumps({"port": str(server.server_port)}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
