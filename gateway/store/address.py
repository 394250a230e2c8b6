"""Which servers does a store's address mean?"""

from collections.abc import Callable
from urllib.parse import parse_qsl, quote, urlencode

from gateway.store import where
from gateway.store.circuit import Circuit
from gateway.store.cluster import Cluster
from gateway.store.opening import PORT, Address, opening
from gateway.store.sentinel import Primary

SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
CLUSTERS = {f"{name}+cluster": scheme for name, scheme in SCHEMES.items() if name != "unix"}
SENTINELS = {f"{name}+sentinel": scheme for name, scheme in SCHEMES.items() if name != "unix"}
KNOWN = [*SCHEMES, *CLUSTERS, *SENTINELS]
SENTINEL_PORT = 26379
Door = Circuit | Cluster


def checked(url: str) -> str:
    """`url` itself. Raises ValueError when it is no address of a store."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in KNOWN:
        raise ValueError(f"a store's address begins with one of {', '.join(f'{name}://' for name in KNOWN)}")
    if scheme not in SCHEMES:
        hosts(rest)
    if scheme in SENTINELS and not _service(rest)[0]:
        raise ValueError(f"sentinels are asked for a service: {scheme}://host:port,host:port/service")
    return url


def open_door(url: str, on_change: Callable[[], None]) -> Door:
    """Nothing is connected yet. `on_change` hears when `down` may have changed."""
    scheme, _, rest = url.partition("://")
    if scheme in SCHEMES:
        return Circuit(opening(f"{SCHEMES[scheme]}://{rest}"), on_change, f"{where(url)}: ")
    if scheme in SENTINELS:
        return Circuit(_primary(SENTINELS[scheme], rest), on_change, f"{where(url)}: ")
    user, at, _ = rest.rpartition("@")
    _, _, query = rest.partition("?")

    def one(address: Address) -> str:
        return f"{CLUSTERS[scheme]}://{user}{at}{_joined(address)}?{query}"

    return Cluster(hosts(rest), one, on_change)


def _primary(scheme: str, rest: str) -> Primary:
    """User, password, database and query are those of the primary.

    Sentinels are asked with the query's sentinel_username and sentinel_password, and with its ssl_ and socket_ options.
    """
    service, database = _service(rest)
    user, at, _ = rest.rpartition("@")
    query = dict(parse_qsl(rest.partition("?")[2]))
    name, password = (quote(query.pop(f"sentinel_{part}", ""), safe="") for part in ("username", "password"))
    known = f"{name}:{password}@" if password else ""
    shared = urlencode({key: value for key, value in query.items() if key.startswith(("ssl_", "socket_"))})
    sentinels = [opening(f"{scheme}://{known}{_joined(address)}?{shared}") for address in hosts(rest, SENTINEL_PORT)]
    return Primary(sentinels, service, opening(f"{scheme}://{user}{at}primary/{database}?{urlencode(query)}"))


def _service(rest: str) -> tuple[str, str]:
    """Service and database in `...host/service[/database][?...]`."""
    path = rest.rpartition("@")[2].partition("?")[0].partition("/")[2]
    service, _, database = path.partition("/")
    return service, database


def hosts(rest: str, port: int = PORT) -> list[Address]:
    """The servers in `[user:password@]host[:port][,host[:port]...][/...][?...]`. Raises ValueError."""
    listed = rest.rpartition("@")[2].partition("?")[0].partition("/")[0]
    return [_address(part, port) for part in listed.split(",")]


def _address(part: str, port: int) -> Address:
    host, _, given = part.rpartition(":") if part.rfind(":") > part.rfind("]") else (part, "", str(port))
    host = host.removeprefix("[").removesuffix("]")
    if not host or not given.isdecimal():
        raise ValueError(f"a store's servers are written host:port,host:port, not {part!r}")
    return host, int(given)


def _joined(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
