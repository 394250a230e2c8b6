"""What do a server's errors mean?"""

AWAY = (
    "LOADING",
    "NOAUTH",
    "WRONGPASS",
    "ERR max number of clients reached",
)  # of a server that serves nobody, or not us


class ResponseError(Exception):
    """A server's answer to one command."""


class NoScriptError(ResponseError):
    """The server does not know the script."""


class TryAgainError(ResponseError):
    """The command's keys are on their way from one server to another."""


class AskError(ResponseError):
    """The key is with another server; an empty host is the one that says so. `slot`: the key's."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        _, slot, address = text.split(" ")
        self.host, _, port = address.rpartition(":")
        self.slot, self.port = int(slot), int(port)


class MovedError(AskError):
    """The key's slot is with another server for good."""


KINDS: dict[str, type[ResponseError]] = {
    "NOSCRIPT": NoScriptError,
    "TRYAGAIN": TryAgainError,
    "ASK": AskError,
    "MOVED": MovedError,
}


def refusal(text: str) -> Exception:
    """The exception for a server's error reply: ResponseError is the command's, ConnectionError the connection's."""
    if text.startswith("READONLY"):
        return ConnectionError("the server became a replica")
    if text.startswith(AWAY):
        return ConnectionError(text)
    return KINDS.get(text.partition(" ")[0], ResponseError)(text)
