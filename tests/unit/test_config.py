"""Settings: what is taken from where, and what is said of what cannot be used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from valetkey.config import Origin, load
from valetkey.errors import ConfigError
from valetkey.settings import SETTINGS

DOCUMENT = Path(__file__).parents[2] / "docs" / "config.md"


def write(home: Path, text: str | bytes) -> Path:
    file = home / "config.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(0o600)
    return file


def environ(home: Path, **more: str) -> dict[str, str]:
    return {"HOME": "/home/someone", "VALETKEY_HOME": str(home), **more}


def refusal(home: Path, text: str | bytes) -> ConfigError:
    write(home, text)
    with pytest.raises(ConfigError) as caught:
        load(environ(home))
    return caught.value


def test_without_a_file_everything_is_the_default(home: Path) -> None:
    config = load(environ(home))
    assert config.seconds("login.timeout_seconds") == 600
    assert config.text("store.key_source") == "auto"
    assert config.words("store.key_command") == ()
    assert {str(origin) for origin in config.origins().values()} == {"default"}


def test_the_file_wins_over_the_default_and_the_environment_over_the_file(home: Path) -> None:
    file = write(home, '# mine\n[login]\nbrowser = "never"\ntimeout_seconds = 60\n')
    config = load(environ(home, VALETKEY_LOGIN_TIMEOUT_SECONDS="90"))
    assert config.text("login.browser") == "never"
    assert config.seconds("login.timeout_seconds") == 90
    assert config.origins()["login.browser"] == Origin(place=f"{file}:3")
    assert config.origins()["login.timeout_seconds"] == Origin(variable="VALETKEY_LOGIN_TIMEOUT_SECONDS")


def test_a_port_is_a_number_also_in_a_variable(home: Path) -> None:
    assert load(environ(home)).port("gateway.port") == 4380
    assert load(environ(home, VALETKEY_GATEWAY_PORT="0")).port("gateway.port") == 0
    for wrong in ("65536", "http", "-1", "8.0", "²"):
        with pytest.raises(ConfigError, match="VALETKEY_GATEWAY_PORT"):
            load(environ(home, VALETKEY_GATEWAY_PORT=wrong))


def test_an_empty_variable_counts_as_unset(home: Path) -> None:
    assert load(environ(home, VALETKEY_LOG_LEVEL="")).text("log.level") == "warning"


def test_a_command_in_a_variable_is_split_as_a_shell_does(home: Path) -> None:
    given = {"VALETKEY_STORE_KEY_SOURCE": "command", "VALETKEY_STORE_KEY_COMMAND": "op read 'a b'"}
    assert load(environ(home, **given)).words("store.key_command") == ("op", "read", "a b")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("~/ca.pem", "/home/someone/ca.pem"), ("/etc/ca.pem", "/etc/ca.pem"), ("ca/own.pem", "{home}/ca/own.pem")],
)
def test_paths_are_absolute_and_relative_ones_begin_at_the_file(home: Path, written: str, meant: str) -> None:
    write(home, f'network.ca_file = "{written}"')
    assert load(environ(home)).text("network.ca_file") == meant.format(home=home)


def test_client_ids_are_the_users_own_data(home: Path) -> None:
    file = write(home, '[providers.github]\nclient_id = "mine"\n')
    config = load(environ(home))
    assert config.client_ids() == {"github": "mine"}
    assert config.value("providers.github.client_id") == "mine"
    assert str(config.origins()["providers.github.client_id"]) == f"{file}:2"


def test_the_nearest_folder_says_which_account_serves(home: Path) -> None:
    write(home, '[folders."~/jobs"]\nanthropic = "work"\nopenai = "work"\n[folders."~/jobs/a.b"]\nopenai = "ab"\n')
    config = load(environ(home))
    assert config.accounts_here(Path("/home/someone/jobs/a.b/src")) == {"anthropic": "work", "openai": "ab"}
    assert config.accounts_here(Path("/home/someone/jobs/other")) == {"anthropic": "work", "openai": "work"}
    assert config.accounts_here(Path("/home/someone/workshop")) == {}


@pytest.mark.parametrize(
    ("text", "line", "words", "hint"),
    [
        ("\n[login]\ntimeout_second = 5\n", 3, "unknown key login.timeout_second", "login.timeout_seconds"),
        ("[logn]\n", 1, "unknown key logn", ""),
        ("login = 5\n", 1, "unknown key login", ""),
        ("a = 1\n", 1, "unknown key a", "config show"),
        ("[login]\nbrowser = true\n", 2, "login.browser", "one of: auto, never"),
        ('[login]\nbrowser = "firefox"\n', 2, "login.browser", "one of: auto, never"),
        ('[login]\ntimeout_seconds = "5"\n', 2, "login.timeout_seconds", "number of seconds"),
        ("[gateway]\nport = 70000\n", 2, "gateway.port", "from 0 to 65535"),
        ("[gateway]\nport = -1\n", 2, "gateway.port", "whole number"),
        ("[gateway]\nport = 80.5\n", 2, "gateway.port", "whole number"),
        ("[gateway]\nport = true\n", 2, "gateway.port", "whole number"),
        ("[login]\ntimeout_seconds = true\n", 2, "login.timeout_seconds", "number of seconds"),
        ("[trace]\nkeep_days = 0\n", 2, "trace.keep_days", "whole number"),
        ("[trace]\nkeep_days = true\n", 2, "trace.keep_days", "whole number"),
        ("[trace]\nmax_rows = 1.5\n", 2, "trace.max_rows", "whole number"),
        ("[trace]\nmax_rows = 1000000001\n", 2, "trace.max_rows", "thousand million"),
        ("[login]\ntimeout_seconds = 0\n", 2, "login.timeout_seconds", "more than 0"),
        ("[login]\ntimeout_seconds = nan\n", 2, "login.timeout_seconds", "more than 0"),
        ("store.key_command = 'op read'\n", 1, "store.key_command", "list of texts"),
        ("store.key_command = ['op', 1]\n", 1, "store.key_command", "list of texts"),
        ('x = """\nlogin.browser = 1\n"""\n[login]\nbrowser = 1\n', 1, "unknown key x", ""),
        ("network = {ca_file = 7}\n", 1, "network.ca_file", "a path"),
        ('default_model = "a\\nb"\n', 1, "default_model", "one line"),
        ("[providers.github.client_id]\nx = 1\n", 1, "providers.github.client_id", "text"),
        ("[store]\n\nkey_source = 'command'\n", 3, "store.key_command", "store.key_command"),
        ("[login]\nbrowser = \n", 2, "not TOML", "docs/config.md"),
        ("a = 'x", 1, "not TOML", "docs/config.md"),
        ("x = " + "[" * 20000, 1, "not TOML", "docs/config.md"),
        (b"# one\n# \xff\n", 2, "not UTF-8", "UTF-8"),
    ],
)
def test_what_cannot_be_used_is_named_by_file_line_and_key(
    home: Path, text: str | bytes, line: int, words: str, hint: str
) -> None:
    error = refusal(home, text)
    assert error.message.startswith(f"{home / 'config.toml'}:{line}: ")
    assert words in error.message
    assert hint in error.hint


def test_lines_inside_a_long_text_are_no_keys(home: Path) -> None:
    file = write(home, '[providers.x]\nclient_id = """\\\n  client_id = 1\\\n  """\n[log]\nlevel = "info"\n')
    origins = load(environ(home)).origins()
    assert str(origins["providers.x.client_id"]) == f"{file}:2"
    assert str(origins["log.level"]) == f"{file}:6"


def test_a_value_that_may_be_a_pasted_secret_is_not_repeated(home: Path) -> None:
    secret = "sk-" + "x" * 40
    error = refusal(home, f'[login]\nbrowser = "{secret}"\n')
    assert secret not in error.message + error.hint


def test_a_variable_that_cannot_be_used_is_named(home: Path) -> None:
    with pytest.raises(ConfigError, match="VALETKEY_NETWORK_TIMEOUT_SECONDS") as caught:
        load(environ(home, VALETKEY_NETWORK_TIMEOUT_SECONDS="soon"))
    assert "number of seconds" in caught.value.hint
    with pytest.raises(ConfigError, match="VALETKEY_STORE_KEY_COMMAND"):
        load(environ(home, VALETKEY_STORE_KEY_COMMAND="op 'read"))


def test_a_number_of_things_is_taken_from_file_and_variable(home: Path) -> None:
    write(home, "[trace]\nkeep_days = 3\n")
    config = load(environ(home, VALETKEY_TRACE_MAX_ROWS="500"))
    assert (config.count("trace.keep_days"), config.count("trace.max_rows")) == (3, 500)
    for wrong in ("0", "-1", "1e3", "9" * 11, "²"):
        with pytest.raises(ConfigError, match="VALETKEY_TRACE_MAX_ROWS"):
            load(environ(home, VALETKEY_TRACE_MAX_ROWS=wrong))


def test_a_folder_in_the_files_place_is_refused(home: Path) -> None:
    (home / "config.toml").mkdir()
    with pytest.raises(ConfigError, match=r"config\.toml is not a file"):
        load(environ(home))


def test_a_pipe_in_the_files_place_holds_up_nobody(home: Path) -> None:
    os.mkfifo(home / "config.toml")
    with pytest.raises(ConfigError, match=r"config\.toml is not a file"):
        load(environ(home))


def test_a_file_that_everybody_can_write_is_refused_with_the_mend(home: Path) -> None:
    file = write(home, "")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="written by everybody") as caught:
        load(environ(home))
    assert f"chmod go-w {file}" in caught.value.hint


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(environ(tmp_path / "home"))


def test_a_key_that_nothing_documents_cannot_be_asked_for(home: Path) -> None:
    with pytest.raises(KeyError):
        load(environ(home)).value("login.timeout")


def test_the_document_and_the_table_say_the_same() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    kinds = {"text": "text", "path": "path", "seconds": "seconds", "count": "whole number", "words": "list of texts"}
    kinds["port"] = "port"
    expected = []
    for setting in SETTINGS:
        kind = " or ".join(f"`{o}`" for o in setting.options) if setting.kind == "choice" else kinds[setting.kind]
        match setting.default:
            case None | ():
                default = "none"
            case value:
                default = f"`{value}`"
        key = setting.key.replace("*", "<id>", 1) if setting.key.startswith(("providers", "agents")) else setting.key
        key = key.replace("mcp.servers.*", "mcp.servers.<name>")
        key = key.replace("folders.*.*", 'folders."<path>".<id>')
        expected.append((key, kind, default, setting.description))
    assert rows == expected


def test_without_a_file_no_toml_parser_is_loaded(home: Path) -> None:
    program = "import sys, os; from valetkey.config import load; load(os.environ); print('tomllib' in sys.modules)"
    given = {**os.environ, "VALETKEY_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=given)
    assert done.stdout == "False\n"
