"""What kind of address a number is, however it is written and whatever it is wrapped in."""

from __future__ import annotations

import pytest

from valetkey.address import check_url, is_metadata, is_near, is_odd_number, standing
from valetkey.errors import InvalidBaseUrl


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert standing(address) == "public"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "100.127.255.255",
        "::1",
        "fd12:3456::1",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::ffff:10.0.0.1",
    ],
)
def test_this_machine_and_private_networks_are_near(address: str) -> None:
    assert standing(address) == "near"


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "0.0.0.0",
        "0.1.2.3",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "febf::1",
        "fec0::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "ff02::1",
        "100::1",
        "2001:db8::1",
        "2001::1",  # Teredo
        "2001:0:7f00:1::",
        "2002:7f00:1::1",  # 6to4 of 127.0.0.1
        "2002:808:808::1",
        "3fff::1",
        "4000::1",
        "::127.0.0.1",  # RFC 4291 section 2.5.5.1
        "::8.8.8.8",
        "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1",  # RFC 2765's IPv4-translated
        "64:ff9b::127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b::169.254.169.254",
        "64:ff9b::100.64.0.1",
        "64:ff9b::224.0.0.1",
        "64:ff9b:1::8.8.8.8",
    ],
)
def test_what_is_no_destination_never_gets_a_request(address: str) -> None:
    assert standing(address) == "never"


def test_a_public_server_behind_nat64_is_what_a_network_of_ipv6_alone_has() -> None:
    assert standing("64:ff9b::8.8.8.8") == "public"


@pytest.mark.parametrize("name", ["localhost", "api.acme.test", "127.1", "2130706433", "0x7f.1", "[::1]", ""])
def test_a_name_has_no_standing(name: str) -> None:
    assert standing(name) is None


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "0x7f.0.0.1", "a.1", "1.2.3.0x"])
def test_numbers_that_only_a_resolver_reads_are_odd(host: str) -> None:
    assert is_odd_number(host)
    with pytest.raises(InvalidBaseUrl):
        check_url(f"https://{host}/v1")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "a1", "1.example", "0x7f.example", "api.acme.test"])
def test_names_and_usual_addresses_are_not_odd(host: str) -> None:
    assert not is_odd_number(host)


@pytest.mark.parametrize("host", ["metadata", "metadata.google.internal", "metadata.tencentyun.com", "instance-data"])
def test_metadata_services_are_known_by_name_too(host: str) -> None:
    assert is_metadata(host)
    with pytest.raises(InvalidBaseUrl):
        check_url(f"https://{host}/v1")


def test_a_carrier_s_network_is_not_near_enough_for_plain_http() -> None:
    assert not is_near("100.64.0.1")
