import logging
import math
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.certificate import Certificate, Life, life, loaded
from tests.gateway.identity import CERTIFICATE, KEY, NEXT_CERTIFICATE, NEXT_KEY, ending, pem

BEFORE = pem("CERTIFICATE", CERTIFICATE), pem("PRIVATE KEY", KEY)
AFTER = pem("CERTIFICATE", NEXT_CERTIFICATE), pem("PRIVATE KEY", NEXT_KEY)
LOCKED = pem(  # AFTER's key, with a pass phrase
    "ENCRYPTED PRIVATE KEY",
    "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg0vmG08TxO4AICCAAwDAYIKoZIhvcNAgkFADAdBglghkgBZQMEAQIEEIX8f2NMJLk27Slx"
    "uzXFn2IEgZB9dQI1nKJHH4TJunGEqItwcTDmVt+MVuCBIgAPAPgN/Uo15sFyqVsvNhHmIYHpREvXT14NWje1ZZEM61EVYdp7TPD/tTPP3YQRdD2/cwQx"
    "Y5c1POPCt7nNru63HrPQfnnpVjk3lwsRmSGuBcFiTBJFsxkpH3W2+eoNUbgwhs7pr9C+A+ZHwMYxu3Brj13Eh5Q=",
)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path, BEFORE)


def write(folder: Path, pair: tuple[str, str]) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    chain, key = folder / "tls.crt", folder / "tls.key"
    chain.write_text(pair[0])
    key.write_text(pair[1])
    return chain, key


def shown(certificate: Certificate) -> str:
    """The certificate that a caller sees, as its PEM file has it."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller, server = trusting.wrap_bio(back, there), certificate.context.wrap_bio(there, back, server_side=True)
    for end in (caller, server, caller):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    found = caller.getpeercert(binary_form=True)
    assert found
    return {ssl.PEM_cert_to_DER_cert(pair[0]): pair[0] for pair in (BEFORE, AFTER)}[found]


def look(certificate: Certificate, times: int = 2) -> None:
    for _ in range(times):
        certificate.look()


def looked(certificate: Certificate, times: int = 2) -> str:
    look(certificate, times)
    return shown(certificate)


def test_a_renewed_pair_is_shown_once_both_files_are_there_and_stand_still(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(*files)
    assert looked(certificate) == BEFORE[0]
    files[0].write_text(AFTER[0])
    assert looked(certificate, 1) == BEFORE[0], "the key may come right after it"
    files[1].write_text(AFTER[1])
    assert looked(certificate, 1) == BEFORE[0], "it may be half written"
    assert caplog.messages == []
    assert looked(certificate, 1) == AFTER[0]
    assert caplog.messages == [f"certificate: {files[0]} is shown from here on"]
    looked(certificate)
    assert len(caplog.messages) == 1


def test_a_swapped_link_as_of_a_mounted_secret_is_seen(tmp_path: Path) -> None:
    write(tmp_path / "..1", BEFORE)
    write(tmp_path / "..2", AFTER)
    (tmp_path / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    certificate = Certificate(tmp_path / "tls.crt", tmp_path / "tls.key")
    (tmp_path / "..next").symlink_to("..2")
    (tmp_path / "..next").rename(tmp_path / "..data")
    assert looked(certificate) == AFTER[0]


def gone(chain: Path, key: Path) -> None:
    chain.unlink()


def foldered(chain: Path, key: Path) -> None:
    key.unlink()
    key.mkdir()


WRONG: dict[str, Callable[[Path, Path], object]] = {
    "gone": gone,
    "a folder": foldered,
    "empty": lambda chain, key: chain.write_text(""),
    "cut": lambda chain, key: write(chain.parent, (AFTER[0][:-40], AFTER[1])),
    "no PEM": lambda chain, key: chain.write_bytes(b"\0\xff" * 400),
    "another's key": lambda chain, key: key.write_text(AFTER[1]),
    "a key with a pass phrase": lambda chain, key: write(chain.parent, (AFTER[0], LOCKED)),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_good_pair_is_never_given_up_for_a_bad_one(
    files: tuple[Path, Path], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(*files)
    WRONG[how](*files)
    assert looked(certificate, 4) == BEFORE[0]
    (told,) = caplog.messages
    assert told.startswith(f"certificate: the one read before stays in force: {files[0]} with the key {files[1]}: ")
    with pytest.raises(OSError, match="with the key"):
        Certificate(*files)
    if files[1].is_dir():
        files[1].rmdir()
    write(files[0].parent, AFTER)
    assert (looked(certificate), certificate.problem) == (AFTER[0], None)


def test_the_pair_in_force_that_comes_back_is_right_again(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(*files)
    files[1].write_text(AFTER[1])
    looked(certificate)
    assert "stays in force" in caplog.messages[-1]
    write(files[0].parent, BEFORE)
    assert (looked(certificate), certificate.problem) == (BEFORE[0], None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_the_end_is_that_of_the_certificate_in_force(files: tuple[Path, Path]) -> None:
    files[0].write_text(ending(1e9))
    certificate = Certificate(*files)
    assert (certificate.life.ends, certificate.state) == (1e9, "expired")
    write(files[0].parent, (ending(4e9), AFTER[1]))
    look(certificate)
    assert (certificate.life.ends, bool(certificate.problem), certificate.state) == (1e9, True, "expired")
    files[1].write_text(BEFORE[1])
    look(certificate)
    assert (certificate.life.ends, certificate.state) == (4e9, "ok")
    files[1].write_text(AFTER[1])
    look(certificate)
    assert (certificate.life.ends, certificate.state) == (4e9, "broken")


def test_the_end_of_a_chain_is_its_first_certificates_and_what_cannot_be_read_has_none(tmp_path: Path) -> None:
    file = tmp_path / "chain"
    file.write_text(BEFORE[1] + ending(4e9) + ending(1e9))
    assert life(file).ends == 4e9
    file.write_text("-----BEGIN TRUSTED CERTIFICATE-----\n")
    assert life(file) == life(tmp_path / "none") == Life(math.inf, math.inf)


def test_what_is_shown_speaks_nothing_older_than_tls_1_2(files: tuple[Path, Path]) -> None:
    assert loaded(*files).minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("which", [0, 1])
def test_a_pipe_in_the_place_of_a_file_is_waited_for_by_nobody(files: tuple[Path, Path], which: int) -> None:
    certificate = Certificate(*files)
    files[which].unlink()
    os.mkfifo(files[which])
    assert looked(certificate) == BEFORE[0]
    assert str(certificate.problem).endswith("a pipe is no file")
    with pytest.raises(OSError, match="a pipe is no file"):
        loaded(*files)
