"""Which addresses of images are read, and what is never opened."""

from __future__ import annotations

import base64

import pytest

pytest.importorskip("aiohttp")

from pargo_ds.serving.image_addresses import ServerAddress, data_of, own_address
from pargo_ds.serving.refusals import RequestError

HERE = ServerAddress("pargo.example", "10.0.0.5")


def test_data_urls_are_decoded():
    body = base64.b64encode(b"bytes").decode()
    assert data_of(f"data:image/png;base64,{body}", 100) == b"bytes"
    assert data_of(f"DATA:image/jpeg;BASE64,{body}", 100) == b"bytes"


@pytest.mark.parametrize(
    "address, status",
    [
        ("data:image/png,abc", 400),
        ("data:", 400),
        ("data:image/png;base64,not base64!", 400),
        ("data:image/png;base64,YWJj\n", 400),
        ("data:image/png;base64,é", 400),
        ("data:image/png;base64," + "A" * 1000, 413),
    ],
)
def test_broken_and_large_data_urls_are_refused(address, status):
    with pytest.raises(RequestError) as error:
        data_of(address, 100)
    assert error.value.status == status


def test_an_address_of_this_host_is_asked_at_the_connections_own_address():
    assert str(own_address("http://pargo.example:81/a.png?b=c", HERE)) == (
        "http://10.0.0.5:81/a.png?b=c"
    )
    assert str(own_address("http://PARGO.example/a.png", HERE)) == "http://10.0.0.5/a.png"
    assert (
        str(own_address("http://[::1]:8/a.png", ServerAddress("::1", "::1")))
        == "http://[::1]:8/a.png"
    )


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "image.png",
        "ftp://pargo.example/a.png",
        "http:///a.png",
        "http://",
        "",
        "http://other.example/a.png",
        "http://pargo.example.other.example/a.png",
        "http://pargo.example@other.example/a.png",
        "http://user@pargo.example/a.png",
        "http://[::1/a.png",
        "http://pargo.example:99999/a.png",
        "http://169.254.169.254/latest/meta-data",
        "javascript:alert(1)",
    ],
)
def test_all_other_addresses_are_refused(address):
    with pytest.raises(RequestError) as error:
        own_address(address, HERE)
    assert error.value.status == 400


def test_a_forged_host_header_opens_no_other_machine():
    """Who claims to have reached a neighbour still gets the address of its own connection."""
    forged = ServerAddress("192.168.0.9", "10.0.0.5")
    assert own_address("http://192.168.0.9/secret.png", forged).host == "10.0.0.5"


def test_where_addresses_are_off_none_is_asked():
    with pytest.raises(RequestError, match="data: URLs only"):
        own_address("http://pargo.example/a.png", ServerAddress(None, None))
