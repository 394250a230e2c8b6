"""What does serving a request need, beside the request?"""

from dataclasses import dataclass

from gateway.cache import Flights
from gateway.comparison import Comparison
from gateway.keys import Keys
from gateway.policy import Policy
from gateway.records import Records
from gateway.retries import Retries
from gateway.shadow import Shadows
from gateway.store import Store
from gateway.telemetry import Telemetry
from gateway.uploads import Uploads
from gateway.upstream import Upstream


@dataclass(slots=True)
class Doors:
    """What all exchanges of a process share. `policy` is replaced whole; a request keeps the one it began with.

    `leaving`: the process is shutting down, and load balancers should send it no more requests.
    """

    policy: Policy
    store: Store
    upstream: Upstream
    flights: Flights
    keys: Keys
    telemetry: Telemetry
    records: Records
    shadows: Shadows
    retries: Retries
    comparison: Comparison
    uploads: Uploads
    leaving: bool = False
