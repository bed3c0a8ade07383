"""The gateway's process and the commands in a shell that is set up for the gateway, or behind a company's proxy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.connect_proxy import ConnectProxy
from tests.support.gateway_process import about, ask, background, declare, end, make_key, until
from tests.support.tls import CertificateAuthority
from tests.support.upstream import Upstream
from valetkey import serving
from valetkey.testing.command_line import PATIENCE_SECONDS

HOST = "api.acme.test"


@pytest.fixture
def line(home: Path, certificate_authority: CertificateAuthority) -> Iterator[CommandLine]:
    line = CommandLine(home=home, environ={"VALETKEY_NETWORK_CA_FILE": str(certificate_authority.ca_file)})
    yield line
    end(line)


@pytest.fixture
def upstream(certificate_authority: CertificateAuthority) -> Iterator[Upstream]:
    with Upstream(tls=certificate_authority.context(HOST)) as server:
        yield server


def test_up_works_in_a_shell_that_is_set_up_for_the_gateway(line: CommandLine, upstream: Upstream) -> None:
    secret = declare(line, f"https://{HOST}:{upstream.port}")
    valet_key = make_key(line)
    with ConnectProxy({f"{HOST}:{upstream.port}": upstream.port}) as company:
        line.environ["ALL_PROXY"] = f"http://me:word@127.0.0.1:{company.port}"
        with background(line) as first:
            port = first["port"]
        line.environ["VALETKEY_GATEWAY_PORT"] = str(port)
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY"):
            line.environ[name] = f"http://x:{valet_key}@127.0.0.1:{port}"
        # A command's own questions do not go through a gateway either, which does not even run.
        assert line("login", "acme", "--key", "-", stdin=secret).status == 0
        assert len(company.heads) == 1
        with background(line) as running:
            assert running["port"] == port
            assert ask(line, valet_key, path="/acme/models").status_code == 200
            environ = Path(f"/proc/{running['pid']}/environ").read_text()
            assert valet_key not in environ
            assert "ALL_PROXY=" in environ
        assert len(company.heads) == 2
    assert {request.header("authorization") for request in upstream.requests} == {f"Bearer {secret}"}


def test_serve_ignores_such_a_proxy_and_says_so_once(line: CommandLine, upstream: Upstream) -> None:
    declare(line, f"https://{HOST}:{upstream.port}")
    valet_key = make_key(line)
    with ConnectProxy({f"{HOST}:{upstream.port}": upstream.port}) as company:
        process = subprocess.Popen(
            [sys.executable, "-m", "valetkey", "serve", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **line.environ,
                "https_proxy": f"http://x:{valet_key}@127.0.0.1:4380",
                "HTTPS_PROXY": f"http://127.0.0.1:{company.port}",
            },
        )
        with process:
            until(lambda: serving.running(str(line.home)) is not None)
            assert about(line)["pid"] == process.pid
            status = ask(line, valet_key, path="/acme/models").status_code
            process.terminate()
            _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert status == 200
    assert len(company.heads) == 1
    assert said.count("https_proxy") == 1
    assert valet_key not in said


def test_what_serve_starts_is_not_sent_to_the_gateway(line: CommandLine, home: Path, tmp_path: Path) -> None:
    # The exporter of traces reads the same environment.
    seen = tmp_path / "seen"
    script = f"import os; open({str(seen)!r}, 'w').write(' '.join(sorted(os.environ))); print('{'5a' * 32}')"
    (home / "config.toml").touch(mode=0o600)
    (home / "config.toml").write_text(f"[store]\nkey_command = {json.dumps([sys.executable, '-c', script])}\n")
    line.environ["VALETKEY_STORE_KEY_SOURCE"] = "command"
    declare(line, f"https://{HOST}")
    valet_key = make_key(line)
    assert "HTTPS_PROXY" not in seen.read_text()
    seen.unlink()
    at = f"http://x:{valet_key}@127.0.0.1:4380"
    process = subprocess.Popen(
        [sys.executable, "-m", "valetkey", "serve", "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**line.environ, "HTTPS_PROXY": at, "HTTP_PROXY": "http://company.test:1"},
    )
    with process:
        until(lambda: serving.running(str(line.home)) is not None and seen.exists() and seen.read_text())
        process.terminate()
    names = seen.read_text().split()
    assert "HTTP_PROXY" in names
    assert "HTTPS_PROXY" not in names
