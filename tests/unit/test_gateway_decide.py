"""The decision where the corpus does not reach: headers, the Host header, grants that nobody declares like this."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.credential import ApiKey, CredentialRef, ExchangedKey, OAuthToken, Secret
from valetkey.errors import InvalidProvider
from valetkey.gateway import grants, pattern
from valetkey.gateway.decide import Client, Decision, Forward, Grant, Hold, Refuse, RequestHead, decide
from valetkey.gateway.policy import GRANTED_ALONE, read
from valetkey.gateway.route import read_target, route
from valetkey.provider import Api, AuthMethod, Provider
from valetkey.store import Record

EVERYTHING = read('default = "allow"', file="p")


def grant(name: str, *, base_url: str, hosts: tuple[str, ...], off_limits: tuple[str, ...] = ()) -> Grant:
    compiled = tuple(pattern.read(text, host_needed=False) for text in off_limits)
    return Grant(ref=CredentialRef(provider=name), base_url=base_url, hosts=hosts, off_limits=compiled)


ACME = grant("acme", base_url="https://api.acme.example/v1", hosts=("api.acme.example", "*.eu.acme.example"))


def client(*granted: Grant) -> Client:
    return Client(id="k", kind="key", grants=granted)


def asked(url: str, *granted: Grant, names: frozenset[str] = frozenset()) -> Decision:
    request = read_target("GET", url, header_names=names)
    assert isinstance(request, RequestHead), request
    return decide(request, client(*granted), EVERYTHING)


def serving(decision: Decision) -> str:
    assert isinstance(decision, Forward), decision
    assert decision.grant is not None
    return decision.grant.provider


@pytest.mark.parametrize("name", ["x-http-method-override", "x-http-method", "x-original-url", "x-rewrite-url"])
def test_a_header_that_makes_another_request_of_it_is_refused(name: str) -> None:
    decision = asked("https://api.acme.example/v1", ACME, names=frozenset({"accept", name}))
    assert isinstance(decision, Refuse)
    assert decision.code == "method_refused"
    assert name in decision.reason


@pytest.mark.parametrize("method", ["get", "", "GE T", "GET\r\n", "G" * 30, "ÄB"])
def test_a_method_that_is_none_is_malformed(method: str) -> None:
    head = RequestHead(method=method, scheme="https", host="api.acme.example", port=None, path="/")
    decision = decide(head, client(ACME), EVERYTHING)
    assert isinstance(decision, Refuse)
    assert (decision.code, decision.status) == ("malformed", 400)


@pytest.mark.parametrize("host", ["api.acme.example", "API.acme.example:443", "api.acme.example."])
def test_a_host_header_may_say_the_same_in_another_spelling(host: str) -> None:
    assert isinstance(read_target("GET", "https://api.acme.example/x", host=host), RequestHead)
    assert isinstance(read_target("CONNECT", "api.acme.example:443", host=host), RequestHead)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "api.acme.example:80", "a@api.acme.example", "api.acme.example,x"]
)
def test_another_host_header_is_malformed(host: str) -> None:
    found = read_target("GET", "https://api.acme.example/x", host=host)
    assert isinstance(found, Refuse)
    assert found.status == 400


@pytest.mark.parametrize("target", ["/x", "*", "api.acme.example/x", "ftp://a.example/", "://a", "http:/a.example"])
def test_a_proxy_wants_the_whole_address(target: str) -> None:
    assert isinstance(read_target("GET", target), Refuse)


@pytest.mark.parametrize("target", ["api.acme.example", "https://api.acme.example:443", "a:b:443", "u@a.example:443"])
def test_connect_wants_host_and_port(target: str) -> None:
    found = read_target("CONNECT", target)
    assert isinstance(found, Refuse) or isinstance(decide(found, client(ACME), EVERYTHING), Refuse)


def test_an_address_without_a_path_has_the_root() -> None:
    for url in ("https://api.acme.example", "https://api.acme.example?x=1"):
        decision = asked(url, ACME)
        assert isinstance(decision, Forward)
        assert decision.target.path == "/"
    fragment = read_target("GET", "https://api.acme.example#x")
    assert isinstance(fragment, RequestHead)
    assert isinstance(decide(fragment, client(ACME), EVERYTHING), Refuse)


def test_the_host_that_is_named_exactly_comes_before_a_wildcard() -> None:
    wide = grant("wide", base_url="https://x.example", hosts=("x.example", "*.acme.example"))
    assert serving(asked("https://api.acme.example/x", wide, ACME)) == "acme"
    assert serving(asked("https://de.eu.acme.example/x", wide, ACME)) == "wide"
    assert serving(asked("https://de.eu.acme.example/x", ACME, wide)) == "acme"


def test_the_longest_base_url_that_the_path_is_below_comes_first() -> None:
    plain = grant("plain", base_url="https://a.example/api/v4", hosts=("a.example",))
    coding = grant("coding", base_url="https://a.example/api/coding/v4", hosts=("a.example",))
    assert serving(asked("https://a.example/api/coding/v4/chat", plain, coding)) == "coding"
    assert serving(asked("https://a.example/api/v4/chat", coding, plain)) == "plain"
    assert serving(asked("https://a.example/api/v44", coding, plain)) == "coding"
    assert serving(asked("https://a.example/api/v44", plain, coding)) == "plain"


def test_a_named_account_serves_only_its_own_hosts() -> None:
    other = grant("other", base_url="https://b.example", hosts=("b.example",))
    head = RequestHead(method="GET", scheme="https", host="b.example", port=None, path="/", grant=ACME.ref)
    decision = decide(head, client(ACME, other), EVERYTHING)
    assert isinstance(decision, Refuse)
    assert decision.code == "not_granted"


def test_a_base_url_outside_of_the_hosts_gives_no_place() -> None:
    odd = grant("odd", base_url="https://evil.example", hosts=("api.acme.example",))
    assert [place.text for place in odd.places] == ["api.acme.example"]
    routed = route(RequestHead(method="GET", scheme="http", host="x", port=None, path="/odd/x"), client(odd))
    assert isinstance(routed, RequestHead)
    assert isinstance(decide(routed, client(odd), EVERYTHING), Refuse)


def test_a_port_of_the_base_url_counts_where_the_host_has_none() -> None:
    odd = grant("odd", base_url="https://api.acme.example:8443/v1", hosts=("api.acme.example",))
    assert serving(asked("https://api.acme.example:8443/x", odd)) == "odd"
    assert serving(asked("https://api.acme.example/x", odd)) == "odd"


def test_a_parameter_in_an_off_limits_host_closes_more_and_never_less() -> None:
    odd = grant("odd", base_url="https://a.example", hosts=("a.example",), off_limits=("* {domain}/keys", "GET a*/x"))
    for path in ("/keys", "/x"):
        decision = asked(f"https://a.example{path}", odd)
        assert isinstance(decision, Refuse)
        assert decision.code == "off_limits"
    assert isinstance(asked("https://a.example/y", odd), Forward)


def test_a_base_url_path_may_be_alone() -> None:
    for path, joined in [("/acme", "/v1/"), ("/acme/", "/v1/"), ("/acme?x=1", "/v1/?x=1"), ("/acme//a", "/v1/a")]:
        routed = route(RequestHead(method="GET", scheme="http", host="x", port=None, path=path), client(ACME))
        assert isinstance(routed, RequestHead)
        assert (routed.host, routed.path) == ("api.acme.example", joined)


@pytest.mark.parametrize("path", ["", "/", "//acme/x", "/Acme/x", "/acme@/x", "/acme@none/x", "/../acme/x"])
def test_a_path_that_begins_with_no_granted_provider_is_not_found(path: str) -> None:
    found = route(RequestHead(method="GET", scheme="http", host="x", port=None, path=path), client(ACME))
    assert isinstance(found, Refuse)
    assert (found.code, found.status) == ("unknown_provider", 404)


@given(st.text(alphabet="/.%2eEfF5cC;:@?#ab*", max_size=20), st.sampled_from(["GET", "POST"]))
def test_a_base_url_never_leaves_the_base(path: str, method: str) -> None:
    head = RequestHead(method=method, scheme="http", host="x", port=None, path=f"/acme/{path}")
    routed = route(head, client(ACME))
    decision = routed if isinstance(routed, Refuse) else decide(routed, client(ACME), EVERYTHING)
    if isinstance(decision, Forward):
        assert decision.target.host == "api.acme.example"
        assert decision.target.path.startswith("/v1/")
    assert not isinstance(decision, Hold)


@given(st.text(alphabet="/.%2eEsSkKyY;:+ab", max_size=24))
def test_no_spelling_of_what_is_off_limits_passes(path: str) -> None:
    """Whatever is sent, decoded twice and in lower case, is not below the path that is off limits."""
    closed = grant("acme", base_url="https://a.example", hosts=("a.example",), off_limits=("* /keys/**",))
    decision = decide(
        RequestHead(method="GET", scheme="https", host="a.example", port=None, path=f"/{path}"),
        client(closed),
        EVERYTHING,
    )
    if isinstance(decision, Forward):
        from urllib.parse import unquote

        read_leniently = unquote(unquote(decision.target.path)).lower()
        assert [s.partition(";")[0] for s in read_leniently.split("/") if s.partition(";")[0]][:1] != ["keys"]


def test_another_host_is_refused_where_nothing_was_said() -> None:
    request = read_target("CONNECT", "example.com:443")
    assert isinstance(request, RequestHead)
    decision = decide(request, client(ACME), GRANTED_ALONE)
    assert isinstance(decision, Refuse)
    assert decision.allow_line == 'allow = "CONNECT example.com/**"'


# --- grants ----------------------------------------------------------------------------------


def provider(*off_limits: str) -> Provider:
    api = Api(base_url="https://api.acme.example", hosts=("api.acme.example",), off_limits=off_limits)
    return Provider(id="acme", name="Acme", api=api, auth=(AuthMethod(id="key", kind="api-key"),))


def test_a_stored_login_is_granted_for_its_own_hosts() -> None:
    ref = CredentialRef(provider="acme", account="work")
    record = Record(
        ref=ref,
        credential=ApiKey(method="key", key=Secret("k")),
        hosts=("old.example",),
        base_url="https://old.example",
    )
    found = grants.stored(record, provider("* /keys"))
    assert (found.ref, found.base_url, found.hosts) == (ref, "https://old.example", ("old.example",))
    assert [p.text for p in found.off_limits] == ["* /keys"]


def test_a_key_that_was_bought_with_an_address_is_for_that() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    login = OAuthToken(method="key", access_token=Secret("t"), issued_at=now)
    credential = ExchangedKey(
        method="key", key=Secret("k"), grant=login, issued_at=now, base_url="https://b.acme.example"
    )
    record = Record(
        ref=CredentialRef(provider="acme"), credential=credential, hosts=("*.acme.example",), base_url="https://a"
    )
    assert grants.stored(record, provider()).base_url == "https://b.acme.example"


def test_off_limits_that_cannot_be_matched_leave_the_provider_out() -> None:
    with pytest.raises(InvalidProvider, match="off_limits of acme"):
        grants.declared(CredentialRef(provider="acme"), provider("* /a/../b"))


def test_decide_reads_nothing_and_knows_no_time() -> None:
    source = Path(decide.__code__.co_filename).parent
    text = "".join((source / name).read_text() for name in ("decide.py", "normal.py", "pattern.py", "route.py"))
    for word in ("open(", "import os", "import socket", "import time", "datetime", "getaddrinfo", "environ"):
        assert word not in text
