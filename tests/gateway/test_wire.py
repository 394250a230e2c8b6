import pytest

from gateway.wire import header_lines


def test_each_header_is_a_line() -> None:
    assert header_lines([(b"a", b"1"), (b"b", b"x: y\xff")]) == b"a: 1\r\nb: x: y\xff\r\n"
    assert header_lines([]) == b""


@pytest.mark.parametrize("text", [b"x\r\ny: z", b"x\ry", b"x\ny", b"x\x00"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_header_that_would_end_before_its_line_is_refused(text: bytes, at: int) -> None:
    pair = (text, b"1") if at == 0 else (b"a", text)
    with pytest.raises(ValueError, match="the end of a line"):
        header_lines([(b"a", b"1"), pair])
