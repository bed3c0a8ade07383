"""A client that asks each URL on its command line with VALET_KEY, keeps all that it got, and waits to be looked at."""

import os
import sys
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

opener = build_opener(ProxyHandler({}))
kept: list[object] = []
for url in sys.argv[1:]:
    request = Request(url, b'{"messages": []}', {"Authorization": f"Bearer {os.environ['VALET_KEY']}"})
    try:
        with opener.open(request, timeout=60) as answer:
            kept.append((dict(answer.headers), answer.read()))
    except HTTPError as error:
        kept.append((dict(error.headers), error.read()))
sys.stdout.write(f"{len(kept)}\n")
sys.stdout.flush()
sys.stdin.readline()
