"""A server that says it is localhost and vouches for itself, for a hundred years."""

import base64
import time

KEY = """
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgJIShWV4JI8JK/2j99rweVGp+asM3Ee5fbceo0huQjrahRANCAAQBNCyg/IC6Z+XN0q+vfZeb
Btto+gXijmRg+vEP2vU2EsRpL+3eDpJmJTTEWVI3p7KX/j38yqn+kEg802ZxlIt6"""
CERTIFICATE = """
MIIBmjCCAUGgAwIBAgIUPcdk8idVo95L25+WzK8i3T8RJCgwCgYIKoZIzj0EAwIwFDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMjAyNDc0MFoY
DzIxMjYxMDI5MDI0NzQwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQBNCyg/IC6Z+XN0q+vfZebBtto+gXi
jmRg+vEP2vU2EsRpL+3eDpJmJTTEWVI3p7KX/j38yqn+kEg802ZxlIt6o28wbTAdBgNVHQ4EFgQUNBuZCBKtTu9O0oZm4pw2b1BTzlowHwYDVR0jBBgw
FoAUNBuZCBKtTu9O0oZm4pw2b1BTzlowDwYDVR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZIzj0EAwIDRwAwRAIg
C8VZS3rjDESvsTRTmzgO2CoypXPonsFlOi2HUTGnnLsCIC2sNMKfnQ5fm+SumIRlrZMO5ea0ITKwUGHnsc8lSh7O"""

# The same, with a key of its own: what a renewal puts in its place.
NEXT_KEY = """
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgUYQrd1EESgeCVR7zBJJAaDkbBINLTvVPPVQ/YZYc5FqhRANCAAQiLMTX1Pw6XIIobI3bR4Cl
OPzFppQZd7vGUKII24QIHbsb/5XC7y0b8uHboOSpz84GWEzBpDra57QCrIisUtik"""
NEXT_CERTIFICATE = """
MIIBmzCCAUGgAwIBAgIUR1Y31t2mlUkJUyg1AV7yBH2Rml8wCgYIKoZIzj0EAwIwFDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzAwMzAwN1oYDzIx
MjYxMDMwMDAzMDA3WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQiLMTX1Pw6XIIobI3bR4ClOPzFppQZd7vGUKII
24QIHbsb/5XC7y0b8uHboOSpz84GWEzBpDra57QCrIisUtiko28wbTAdBgNVHQ4EFgQUDyKCiGUAx54bFmB7wHDrN88TQ28wHwYDVR0jBBgwFoAUDyKCiGUA
x54bFmB7wHDrN88TQ28wDwYDVR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZIzj0EAwIDSAAwRQIgIx2Z2fycSxlqJqB2
j0Jv10RjJHCy24WVxKo3NGwZcPECIQD+2L9kFL5HM/3ASX63vr4EF1yhZYbofsb0W60jf6h8vg=="""


def pem(kind: str, text: str) -> str:
    lines = base64.encodebytes(base64.b64decode(text)).decode()
    return f"-----BEGIN {kind}-----\n{lines}-----END {kind}-----\n"


def ending(when: float, days: float = 90.0) -> str:
    """CERTIFICATE, which ends at that Unix second and is for so many days; its signature is wrong, at which who shows
    it does not look."""
    begins, ends = (time.strftime("%Y%m%d%H%M%SZ", time.gmtime(at)) for at in (when - days * 86_400, when))
    made = base64.b64decode(CERTIFICATE).replace(b"21261029024740Z", ends.encode())
    made = made.replace(b"261122024740Z", begins[2:].encode())
    return pem("CERTIFICATE", base64.b64encode(made).decode())
