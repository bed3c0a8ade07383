"""The proxies that are compared, each set up to do the same: put the real key in and forward over verified TLS.

Each has one worker on one core and writes no log. Clients speak plain HTTP to it; what is below /slow goes to the
upstream that streams. LiteLLM does not start without a key that
clients have to have; Valetkey alone decides by a policy, counts and keeps a trace.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.client import Address
from bench.running import Cores, Process, free_port, started, tool
from bench.upstream import MODEL

__all__ = ["HEAVY", "LIGHT", "ROOT", "VENV", "Start", "Target", "Upstreams"]

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-bench"


@dataclass(frozen=True, kw_only=True)
class Upstreams:
    """Where the two upstreams are, what they want, and who vouches for them."""

    fast: int
    slow: int
    key: str = field(repr=False)
    ca_file: Path

    def direct(self) -> Target:
        fast = Address(port=self.fast, token=self.key, ca_file=str(self.ca_file))
        return Target(name="direct", fast=fast, slow=replace(fast, port=self.slow))


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that requests can go through; `slow` is None where it cannot pass a stream on as it is."""

    name: str
    fast: Address
    slow: Address | None = None
    process: Process | None = None
    # Whether each request gets a head of its own.
    varied: bool = False


Start = Callable[[Upstreams, Path, Cores], contextlib.AbstractContextManager[Target]]


@contextlib.contextmanager
def nginx(upstreams: Upstreams, folder: Path, on: Cores) -> Iterator[Target]:
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""  # its worker has to reach the run's folder, mode 0700
    config = folder / "nginx.conf"
    config.touch(mode=0o600)
    config.write_text(f"""
    {user}
    worker_processes 1;
    worker_rlimit_nofile 16384;
    daemon off;
    pid {folder}/nginx.pid;
    error_log stderr crit;
    events {{ worker_connections 8192; }}
    http {{
      access_log off;
      keepalive_requests 1000000000;
      keepalive_timeout 3600s;
      client_max_body_size 0;
      client_body_temp_path {folder}/nginx-body;
      proxy_temp_path {folder}/nginx-proxy;
      upstream fast {{
        server 127.0.0.1:{upstreams.fast};
        keepalive 256; keepalive_requests 1000000000; keepalive_timeout 3600s;
      }}
      upstream slow {{
        server 127.0.0.1:{upstreams.slow};
        keepalive 256; keepalive_requests 1000000000; keepalive_timeout 3600s;
      }}
      server {{
        listen 127.0.0.1:{port} backlog=4096;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Authorization "Bearer {upstreams.key}";
        proxy_ssl_verify on;
        proxy_ssl_trusted_certificate {upstreams.ca_file};
        proxy_ssl_name localhost; # it compares with DNS names alone
        proxy_ssl_server_name on;
        proxy_read_timeout 3600s;
        proxy_request_buffering off;
        proxy_max_temp_file_size 0;
        location / {{ proxy_pass https://fast; }}
        location /slow/ {{ proxy_pass https://slow/; }}
      }}
    }}
    """)
    argv = [tool("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)]
    with started("nginx", argv, core=on.proxy, ports=[port], log=folder / "nginx.log") as process:
        yield Target(name="nginx", fast=Address(port=port), slow=Address(port=port, prefix="/slow"), process=process)


def _envoy_cluster(name: str, port: int, ca_file: Path) -> dict[str, Any]:
    api = "type.googleapis.com/envoy.extensions"
    validation = {
        "trusted_ca": {"filename": str(ca_file)},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "localhost"}}],
    }
    many = 100_000
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {
            "thresholds": [{"max_connections": many, "max_pending_requests": many, "max_requests": many}]
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
                    ]
                }
            ],
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{api}.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "localhost",
                "common_tls_context": {"validation_context": validation},
            },
        },
    }


@contextlib.contextmanager
def envoy(upstreams: Upstreams, folder: Path, on: Cores) -> Iterator[Target]:
    port = free_port()
    api = "type.googleapis.com/envoy.extensions.filters"
    forever = {"timeout": "0s", "idle_timeout": "0s"}
    connections = {
        "@type": f"{api}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP1",
        "stream_idle_timeout": "0s",
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/slow/"},
                            "route": {"cluster": "slow", "prefix_rewrite": "/", **forever},
                        },
                        {"match": {"prefix": "/"}, "route": {"cluster": "fast", **forever}},
                    ],
                    "request_headers_to_add": [
                        {
                            "header": {"key": "authorization", "value": f"Bearer {upstreams.key}"},
                            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{api}.http.router.v3.Router", "suppress_envoy_headers": True},
            }
        ],
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}]}
        ],
    }
    clusters = [_envoy_cluster(name, getattr(upstreams, name), upstreams.ca_file) for name in ("fast", "slow")]
    config = folder / "envoy.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": clusters}}))
    argv = [str(VENV / "bin/envoy"), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "critical"]
    with started("envoy", argv, core=on.proxy, ports=[port], log=folder / "envoy.log") as process:
        yield Target(name="Envoy", fast=Address(port=port), slow=Address(port=port, prefix="/slow"), process=process)


_ADDON = """
import os

VALUE = "Bearer " + os.environ["BENCH_KEY"]


def requestheaders(flow):
    flow.request.headers["authorization"] = VALUE


def responseheaders(flow):
    flow.response.stream = flow.response.headers.get("content-type") == "text/event-stream"
"""


@contextlib.contextmanager
def mitmproxy(upstreams: Upstreams, folder: Path, on: Cores) -> Iterator[Target]:
    fast, slow = free_port(), free_port()
    addon = folder / "addon.py"
    addon.write_text(_ADDON)
    options = {
        "confdir": folder / "mitmproxy",
        "ssl_verify_upstream_trusted_ca": upstreams.ca_file,
        "connection_strategy": "lazy",
        "http2": "false",
        "stream_large_bodies": "1m",
        "listen_host": "127.0.0.1",
    }
    argv = [str(ROOT / ".venv-bench-mitmproxy/bin/mitmdump"), "-q", "-s", str(addon)]
    for ours, theirs in ((fast, upstreams.fast), (slow, upstreams.slow)):
        argv += ["--mode", f"reverse:https://127.0.0.1:{theirs}@{ours}"]
    for name, value in options.items():
        argv += ["--set", f"{name}={value}"]
    with started(
        "mitmproxy",
        argv,
        core=on.proxy,
        ports=[fast, slow],
        log=folder / "mitmproxy.log",
        environ={"BENCH_KEY": upstreams.key},
    ) as process:
        yield Target(name="mitmproxy", fast=Address(port=fast), slow=Address(port=slow), process=process)


@contextlib.contextmanager
def litellm(upstreams: Upstreams, folder: Path, on: Cores) -> Iterator[Target]:
    """Start LiteLLM's proxy. It takes answers apart and makes its own: streams through it are not compared."""
    port, token = free_port(), "sk-" + secrets.token_hex(32)
    parameters = {
        "model": f"openai/{MODEL}",
        "api_base": f"https://127.0.0.1:{upstreams.fast}/v1",
        "api_key": "os.environ/BENCH_KEY",
    }
    config = folder / "litellm.yaml"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": parameters}]}))
    environ = {
        "BENCH_KEY": upstreams.key,
        "LITELLM_MASTER_KEY": token,
        "SSL_CERT_FILE": str(upstreams.ca_file),
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        "HOME": str(folder),
    }
    argv = [str(ROOT / ".venv-bench-litellm/bin/litellm"), "--config", str(config), "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    log = folder / "litellm.log"
    with started("litellm", argv, core=on.proxy, ports=[port], log=log, environ=environ, seconds=180) as process:
        yield Target(name="LiteLLM", fast=Address(port=port, token=token), process=process)


LIGHT: dict[str, Start] = {"nginx": nginx, "envoy": envoy}
HEAVY: dict[str, Start] = {"mitmproxy": mitmproxy, "litellm": litellm}
