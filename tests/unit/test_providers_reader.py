"""The reader of declarations: what it takes, and what it says about what it does not take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valetkey.errors import InvalidProvider
from valetkey.provider import Provider, When
from valetkey.providers import schema
from valetkey.providers.reader import MAX_FILE_BYTES, read, read_file

GOOD = """\
id = "acme"
name = "Acme"

[api]
base_url = "https://api.acme.example/v1"
dialect = "openai-chat"
hosts = ["api.acme.example"]
probe = { get = "/models" }

[[auth]]
id = "api-key"
kind = "api-key"
environment = ["ACME_API_KEY"]
inject = [{ set = { authorization = "Bearer {key}" } }]
"""
DEVICE = """
[[auth]]
id = "device"
kind = "device"
client_id = "abc"
device_authorization_endpoint = "https://login.acme.example/device"
token_endpoint = "https://login.acme.example/token"
"""
REGION = """
[[auth.parameters]]
key = "region"
label = "Region"
default = "eu"
pattern = "[a-z]+"
"""


def parse(text: str, name: str = "acme") -> Provider:
    return read(text, path=Path(f"/home/u/.valetkey/providers/{name}.toml"), origin="user")


def fault(text: str) -> InvalidProvider:
    with pytest.raises(InvalidProvider) as caught:
        parse(text)
    error = caught.value
    assert str(error).startswith("/home/u/.valetkey/providers/acme.toml")
    assert error.hint
    return error


def test_a_good_declaration_is_read() -> None:
    provider = parse(GOOD + DEVICE)
    assert provider.origin == "user"
    assert provider.api.hosts == ("api.acme.example",)
    assert provider.auth[0].inject[0].set == {"authorization": "Bearer {key}"}
    assert provider.auth[1].scope == ()


def test_when_reads_parameters_beside_their_changes() -> None:
    when = 'when = [{ region = "us", base_url = "https://us.acme.example", hosts = ["us.acme.example"] }]\n'
    method = parse(GOOD + when + REGION).auth[0]
    assert method.when == (
        When(values={"region": "us"}, base_url="https://us.acme.example", hosts=("us.acme.example",)),
    )


# What is put in place of what, the key and line that are named, and a piece of message or hint.
FAULTS = [
    ('dialect = "openai-chat"', 'dialekt = "openai-chat"', "line 6", "api.dialekt", "write `dialect`"),
    ('dialect = "openai-chat"', 'dialect = "openai"', "line 6", "api.dialect", '"openai-responses"'),
    ('hosts = ["api.acme.example"]', 'hosts = "api.acme.example"', "line 7", "api.hosts", "a list, in brackets"),
    ('hosts = ["api.acme.example"]', "hosts = [1]", "line 7", "api.hosts[0]", "text, in quotes"),
    ('name = "Acme"', "name = 3", "line 2", "name", "text, in quotes"),
    ('name = "Acme"', "", "", "name", "is missing"),
    ('name = "Acme"', 'name = " "', "line 2", "name", "is empty"),
    ('name = "Acme"', 'name = "A\\u001bcme"', "line 2", "name", "control character"),
    ('name = "Acme"', 'name = "A\\u009bcme"', "line 2", "name", "control character"),
    ('id = "acme"', 'id = "other"', "line 1", "id", 'id = "acme"'),
    ('id = "acme"', 'id = "Acme"', "line 1", "id", "lower-case"),
    ('id = "acme"', 'id = "valetkey"', "line 1", "id", "another one"),
    ('name = "Acme"', 'name = "Acme"\norigin = "built-in"', "line 3", "origin", "is no key"),
    ('name = "Acme"', 'name = "Acme"\noverride = "yes"', "line 3", "override", "true or false"),
    ('name = "Acme"', 'name = "Acme"\nchecked = { on = "2026", at = "x" }', "line 3", "checked.on", "a date"),
    ('name = "Acme"', 'name = "Acme"\naliases = ["A B"]', "line 3", "aliases", "lower-case"),
    ('{ get = "/models" }', "{ }", "line 8", "api.probe", "just one of get and post"),
    ('{ get = "/models" }', '{ get = "models" }', "line 8", "api.probe.get", "begins with /"),
    ('{ get = "/models" }', '{ get = "/m", name = "login" }', "line 8", "api.probe.name", '"/login"'),
    ('{ get = "/models" }', '{ get = "/m", name = "/a~2" }', "line 8", "api.probe.name", "RFC 6901"),
    ('{ get = "/models" }', '{ get = "https://other.example/me" }', "line 7", "api.hosts", "other.example"),
    ('{ get = "/models" }', '{ get = "http://api.acme.example/me" }', "line 7", "api.hosts", "plain http"),
    ('probe = { get = "/models" }', 'off_limits = ["/v1/keys"]', "line 8", "api.off_limits[0]", "method and path"),
    ("https://api.acme.example/v1", "http://api.acme.example/v1", "line 5", "api.base_url", "write https://"),
    ("https://api.acme.example/v1", "ftp://api.acme.example/v1", "line 5", "api.base_url", "https://"),
    ("https://api.acme.example/v1", "https://u:p@api.acme.example/v1", "line 5", "api.base_url", "take it out"),
    ("https://api.acme.example/v1", "https://api.acme.example/v1?a=1", "line 5", "api.base_url", "leave it off"),
    ("https://api.acme.example/v1", "https://api.acme.example/v1#a", "line 5", "api.base_url", "leave it off"),
    ("https://api.acme.example/v1", "https://169.254.169.254/v1", "line 5", "api.base_url", "metadata"),
    ("https://api.acme.example/v1", "https://other.example/v1", "line 7", "api.hosts", 'hosts = ["other.example"]'),
    ("https://api.acme.example/v1", "https://{region}.acme.example", "line 5", "api.base_url", "not known here"),
    ('["api.acme.example"]', '["api.*.example"]', "line 7", "api.hosts", "wildcard"),
    ('["api.acme.example"]', '["*.example"]', "line 7", "api.hosts", "wildcard"),
    ('["api.acme.example"]', '["*"]', "line 7", "api.hosts", "wildcard"),
    ('["api.acme.example"]', '["api.acme.example", "*api.acme.example"]', "line 7", "api.hosts", "wildcard"),
    ('["api.acme.example"]', '["https://api.acme.example"]', "line 7", "api.hosts", "without scheme"),
    ('["api.acme.example"]', "[]", "line 7", "api.hosts", 'hosts = ["api.acme.example"]'),
    ("[[auth]]", "[[auth]]\noptional = 1", "line 11", "auth[0].optional", "true or false"),
    ('kind = "api-key"', 'kind = "apikey"', "line 12", "auth[0].kind", '"device-exchange"'),
    ('kind = "api-key"', 'kind = "Some flow"', "line 12", "auth[0].kind", "name of a package's flow"),
    ('kind = "api-key"', "kind = 7", "line 12", "auth[0].kind", "text, in quotes"),
    ('kind = "api-key"', "", "line 10", "auth[0].kind", "is missing"),
    ('kind = "api-key"', 'kind = "device"', "line 10", "auth[0].client_id", "device needs"),
    ('kind = "api-key"', 'kind = "api-key"\nstanding = "restricted"', "line 10", "auth[0].notice", "terms"),
    ('kind = "api-key"', 'kind = "api-key"\nfor_agents = ["x"]', "line 13", "auth[0].for_agents", "restricted"),
    ('kind = "api-key"', 'kind = "cloud"\nsource = { kind = "file" }', "line 13", "auth[0].source.file", "is missing"),
    ('kind = "api-key"', 'kind = "api-key"\nendpoint = "aws"', "line 13", "auth[0].endpoint", "take out one"),
    ('["ACME_API_KEY"]', '["ACME API KEY"]', "line 13", "auth[0].environment", "variable name"),
    ("{key}", "{access_token}", "line 14", "auth[0].inject[0].set.authorization", "{key}"),
    ("{key}", "{key", "line 14", "auth[0].inject[0].set.authorization", "brace"),
    ("authorization = ", '"a b" = ', "line 14", "auth[0].inject[0].set.a b", "header name"),
    ("set = { authorization", "sett = { authorization", "line 14", "auth[0].inject[0].sett", "write `set`"),
    ('set = { authorization = "Bearer {key}" }', 'basic = "{key}"', "line 14", "auth[0].inject[0].basic", "colon"),
    (
        "hosts =",
        'shapes = [{ dialect = "gemini", set = { a = 1.5 } }]\nhosts =',
        "line 7",
        "api.shapes[0].set.a",
        "or true",
    ),
    ("hosts =", 'models = { known = ["{x}"] }\nhosts =', "line 7", "api.models.known[0]", "{x}"),
    ('name = "Acme"', 'name = "Acme"\nchecked = { on = 2026-11-22, at = "x" }', "line 3", "checked.at", "https://"),
    (
        "hosts =",
        'rewrite = [{ path = "x", when_status = 403, status = 200 }]\nhosts =',
        "line 7",
        "api.rewrite[0].path",
        "with /",
    ),
    ("[[auth]]", "[auth]", "line 10", "auth", "a list, in brackets"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "said"), FAULTS)
def test_a_fault_names_line_and_key_and_what_to_write(old: str, new: str, line: str, key: str, said: str) -> None:
    assert old in GOOD
    error = fault(GOOD.replace(old, new, 1))
    assert line in error.message
    assert f": {key} " in error.message
    assert said in f"{error.message} | {error.hint}"


SEALED = '\n[[auth.parameters]]\nkey = "region"\nlabel = "Region"\nsecret = true\n'
MORE_FAULTS = [
    (DEVICE.replace("https://login.acme.example/token", "http://login.acme.example/token"), "auth[1].token_endpoint"),
    (DEVICE.replace("https://login.acme.example/dev", "https://u@login.acme.example/dev"), "auth[1].device_auth"),
    (DEVICE.replace("https://login.acme.example/token", "https://{host}/token"), "auth[1].token_endpoint"),
    (DEVICE.replace('client_id = "abc"\n', ""), "auth[1].client_id"),
    (DEVICE.replace('"device"\nkind', '"api-key"\nkind'), "auth[1].id"),
    (DEVICE + "device = { fields = { a = 1 } }\n", "auth[1].device.fields.a"),
    (DEVICE + 'device = { poll_parameters = { a = "{b}" } }\n', "auth[1].device.poll_parameters.a"),
    (DEVICE + 'claims = { account_id = ["sub"] }\n', "auth[1].claims.account_id"),
    (DEVICE + 'token = { body = "xml" }\n', "auth[1].token.body"),
    (DEVICE + 'redirect = { paste = "http://acme.example" }\n', "auth[1].redirect.paste"),
    (DEVICE + "redirect = { }\n", "auth[1].redirect"),
    (DEVICE + 'redirect = { loopback = { host = "acme.example" } }\n', "auth[1].redirect.loopback"),
    (DEVICE + 'exchange = { get = "https://a.example", post = "https://a.example" }\n', "auth[1].exchange"),
    (DEVICE + 'exchange = { get = "http://a.example" }\n', "auth[1].exchange"),
    (DEVICE + 'create_key = { post = "http://a.example" }\n', "auth[1].create_key.post"),
    (DEVICE + 'revocation_endpoint = "http://a.example"\n', "auth[1].revocation_endpoint"),
    (DEVICE + 'keys_url = "javascript:alert(1)"\n', "auth[1].keys_url"),
    (DEVICE.replace('"device"\nclient', '"device-exchange"\nclient'), "auth[1].exchange"),
    (DEVICE.replace('kind = "device"', 'kind = "authorization-code"'), "auth[1].authorization_endpoint"),
    (REGION.replace('"[a-z]+"', '"["'), "auth[0].parameters[0].pattern"),
    (REGION.replace('"eu"', '"EU"'), "auth[0].parameters[0].default"),
    (REGION + 'options = ["us"]\n', "auth[0].parameters[0].default"),
    (REGION + "secret = true\n", "auth[0].parameters[0].default"),
    (REGION.replace('"region"\n', '"re gion"\n'), "auth[0].parameters[0].key"),
    ('when = [{ regoin = "us", base_url = "https://a.example" }]\n' + REGION, "auth[0].when[0].regoin"),
    ('when = [{ region = "us" }]\n' + REGION, "auth[0].when[0]"),
    ('when = [{ region = "us", base_url = "https://a.example" }]\n' + REGION, "auth[0].when[0]"),
    ('source = { kind = "command" }\n', "auth[0].source.command"),
    ('source = { kind = "command", command = ["x", "{y}"] }\n', "auth[0].source.command"),
    ('sandbox = { environment = { A = "{key}" } }\n', "auth[0].sandbox.environment.A"),
    # Sealed like a key, and asked for beside it.
    ('sandbox = { environment = { A = "{region}" } }\n' + SEALED, "auth[0].sandbox.environment.A"),
    ('sandbox = { environment = { A = "{account_id}" } }\n', "auth[0].sandbox.environment.A"),
    ('sandbox = { files = { "/etc/a" = ["x", "{key}"] } }\n', "auth[0].sandbox.files./etc/a[1]"),
    ('sandbox = { files = { "/etc/a" = "x" } }\n', "auth[0].sandbox.files./etc/a"),
    *(
        (f'sandbox = {{ files = {{ "{path}" = ["x"] }} }}\n', "auth[0].sandbox.files holds")
        for path in (
            "/usr/a",
            "a",
            "~",
            "~/",
            "~/../a",
            "~b/a",
            "/etc/../a",
            "/etc/a/",
            "/etc//a",
            "/etc",
            "~/a b",
            "/etc/+",
        )
    ),
    ("exports = 3\n", "auth[0].exports is the number 3"),
    ("sandbox = [1]\n", "auth[0].sandbox is a list"),
    ("optional = 1979-05-27T07:32:00Z\n", "auth[0].optional is a date or time"),
    ('exports = { A = "{nope}" }\n', "auth[0].exports.A"),
]


@pytest.mark.parametrize(("addition", "key"), MORE_FAULTS)
def test_what_is_added_wrongly_is_named(addition: str, key: str) -> None:
    assert f": {key}" in fault(GOOD + addition).message


def test_a_declaration_without_a_way_to_log_in_is_refused() -> None:
    text = "auth = []\n" + GOOD.split("[[auth]]")[0]
    assert "auth is empty" in fault(text).message


OPTIONS = '\n[[auth.parameters]]\nkey = "region"\nlabel = "Region"\ndefault = "eu"\noptions = ["eu", "us"]\n'


def test_options_may_stand_in_an_address_without_a_pattern() -> None:
    text = GOOD.replace("api.acme.example", "{region}.acme.example") + OPTIONS
    assert parse(text).api.base_url == "https://{region}.acme.example/v1"


def test_when_knows_the_options() -> None:
    when = 'when = [{ region = "uk", base_url = "https://api.acme.example/uk" }]\n'
    assert "eu, us" in fault(GOOD + when + OPTIONS).hint


@pytest.mark.parametrize("pattern", [".+", "[a-z./]+", "[^/]+", "[a-z]*", "\\\\w+\\\\s?"])
def test_a_parameter_in_an_address_must_not_break_out_of_it(pattern: str) -> None:
    text = GOOD.replace("api.acme.example", "{region}.acme.example") + REGION.replace("[a-z]+", pattern)
    assert "{region}" in fault(text).message


def test_a_parameter_in_an_address_needs_a_pattern() -> None:
    text = GOOD.replace("api.acme.example", "{region}.acme.example") + REGION.replace('pattern = "[a-z]+"\n', "")
    assert "no pattern" in fault(text).message


def test_every_method_must_know_the_parameters_of_the_address() -> None:
    text = GOOD.replace("api.acme.example", "{region}.acme.example") + REGION
    assert parse(text).api.hosts == ("{region}.acme.example",)
    assert "not known here" in fault(text + DEVICE).message


def test_a_key_over_plain_http_needs_a_yes_even_near_by() -> None:
    near = GOOD.replace("https://api.acme.example", "http://10.0.0.5:8000").replace("api.acme.example", "10.0.0.5:8000")
    assert "allow_http" in fault(near).hint
    assert parse(near.replace("[api]", "[api]\nallow_http = true")).api.allow_http


@pytest.mark.parametrize("text", ["", "id =", "[[auth]", "id = 1979-05-27", "a" * 5000, "x = " + "[" * 5000])
def test_rubbish_is_refused_with_a_hint(text: str) -> None:
    assert fault(text).hint


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\xfe", "UTF-8"), (GOOD.encode() + b"#" * MAX_FILE_BYTES, "longer than")]
)
def test_a_file_that_is_no_declaration_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "acme.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidProvider, match=rf"acme\.toml.*{said}"):
        read_file(path, origin="user")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "acme.toml").mkdir()
    with pytest.raises(InvalidProvider, match="cannot be read"):
        read_file(tmp_path / "acme.toml", origin="user")


def test_the_schema_beside_the_files_is_the_one_of_the_types() -> None:
    kept = (Path(schema.__file__).parent / "schema.json").read_text()
    assert json.loads(kept) == schema.schema(), (
        "run `python -m valetkey.providers.schema > src/valetkey/providers/schema.json`"
    )
    assert kept == schema.dumps()
