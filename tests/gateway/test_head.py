import pytest

from gateway.errors import BadRequest, Misdirected
from gateway.head import announced, around_length, checked_headers, out_of_url, without_upgrade

HOST = (b"Host", b"gateway:80")


def test_names_are_told_in_lower_case_and_of_several_the_last_one() -> None:
    assert checked_headers([HOST, (b"X-A", b"1"), (b"x-a", b"\xe9")], "1.1", ()) == {"host": "gateway:80", "x-a": "é"}


@pytest.mark.parametrize("name", [b"Host", b"transfer-encoding", b"Authorization", b"X-Api-Key"])
def test_what_decides_who_asks_for_what_is_told_once(name: bytes) -> None:
    with pytest.raises(BadRequest):
        checked_headers([HOST, (name, b"chunked"), (name, b"chunked")], "1.1", ())


def test_a_host_that_is_not_served_is_named_to_who_asked_for_it() -> None:
    assert checked_headers([HOST], "1.1", {"gateway"})["host"] == "gateway:80"
    with pytest.raises(Misdirected, match=r"'gateway:80'.*GATEWAY_HOSTS"):
        checked_headers([HOST], "1.1", {"other"})


def test_a_url_gives_its_path_and_its_host() -> None:
    sent = [(b"A", b"1"), HOST]
    assert out_of_url(b"http://other:1?x", sent, "1.1") == (b"/?x", [(b"A", b"1"), (b"Host", b"other:1")])
    assert out_of_url(b"http://other", sent[:1], "1.0") == (b"/", [(b"A", b"1"), (b"host", b"other")])
    assert out_of_url(b"http://other/", sent[:1], "1.1") == (b"/", sent[:1]), "who sends none is refused for that"


def test_only_the_offer_of_another_protocol_is_left_out() -> None:
    headers = [HOST, (b"UPGRADE", b"h2c"), (b"Connection", b"Upgrade, close"), (b"upgrade", b"x"), (b"a", b" b\xff ")]
    head = without_upgrade(b"POST", b"/v1?a=b", "1.1", headers)
    assert head == b"POST /v1?a=b HTTP/1.1\r\nHost: gateway:80\r\nConnection: Upgrade, close\r\na:  b\xff \r\n\r\n"


def test_a_head_is_known_again_by_all_but_the_digits_of_its_length() -> None:
    head = b"POST / HTTP/1.1\r\nContent-Length: 3\r\nhost: a\r\n\r\n"
    assert around_length(head + b"abcd", 3) is None
    assert around_length(head.replace(b"-Length", b""), 0) is None
    around = around_length(head + b"abc", 3) or (b"", b"")
    assert announced(head.replace(b"3", b"123456789"), *around) == 123_456_789
    for digits in (b"", b"0", b"03", b"+3", b"3 ", b"\xb3", b"1234567890"):
        assert announced(head.replace(b"3", digits), *around) == 0, digits
    for other in (b"x" + head[1:], head[:-1] + b"x", head + b"abc"):
        assert announced(other, *around) == 0, other
