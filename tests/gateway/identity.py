"""A server that says it is localhost and vouches for itself, for a hundred years."""

import base64

KEY = """
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgJIShWV4JI8JK/2j99rweVGp+asM3Ee5fbceo0huQjrahRANCAAQBNCyg/IC6Z+XN0q+vfZeb
Btto+gXijmRg+vEP2vU2EsRpL+3eDpJmJTTEWVI3p7KX/j38yqn+kEg802ZxlIt6"""
CERTIFICATE = """
MIIBmjCCAUGgAwIBAgIUPcdk8idVo95L25+WzK8i3T8RJCgwCgYIKoZIzj0EAwIwFDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMjAyNDc0MFoY
DzIxMjYxMDI5MDI0NzQwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQBNCyg/IC6Z+XN0q+vfZebBtto+gXi
jmRg+vEP2vU2EsRpL+3eDpJmJTTEWVI3p7KX/j38yqn+kEg802ZxlIt6o28wbTAdBgNVHQ4EFgQUNBuZCBKtTu9O0oZm4pw2b1BTzlowHwYDVR0jBBgw
FoAUNBuZCBKtTu9O0oZm4pw2b1BTzlowDwYDVR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZIzj0EAwIDRwAwRAIg
C8VZS3rjDESvsTRTmzgO2CoypXPonsFlOi2HUTGnnLsCIC2sNMKfnQ5fm+SumIRlrZMO5ea0ITKwUGHnsc8lSh7O"""


def pem(kind: str, text: str) -> str:
    lines = base64.encodebytes(base64.b64decode(text)).decode()
    return f"-----BEGIN {kind}-----\n{lines}-----END {kind}-----\n"
