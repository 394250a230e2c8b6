"""Sessions in a store that processes share, and one that stands still."""

import asyncio
import os
import signal

from valkey import Valkey

from gateway.embedded import embedded
from gateway.policy import load_policy
from gateway.sessions import recalling
from gateway.store import Limits, open_store
from gateway.store.valkey import RedisStore
from gateway.turns import SessionKeys, session_keys
from loadtest.servers import Sim, running
from tests.gateway.serving import COMPLEX, PATIENCE, SIMPLE, Port, asked, body, gateway
from tests.gateway.test_sessions import sessions
from tests.stores import on

HERE = {"x-session-id": "a"}
WIDE = Limits(1_000_000, 100_000, 60.0)
TEXT = """
schema: 1
tiers:
  flash: {{model: flash-model, replicas: ["{0}"]}}
  pro: {{model: pro-model, replicas: ["{1}"]}}
triage: {{timeout: 5s}}
sessions: {{}}
rules: [{{id: triaged, route: {{simple: flash, complex: pro}}}}]
"""


def test_a_conversation_is_known_to_every_process(flash: Sim, pro: Sim, valkey: str) -> None:
    text = TEXT.format(flash.url, pro.url)

    async def main(other: Port) -> None:
        async with gateway(load_policy(text), open_store(valkey)) as one:
            for n, port in enumerate((one, other, one, other)):
                found = await port.ask(body(SIMPLE if n else COMPLEX), x_session_id="a")
                wanted = ("pro", "session" if n else "complex")
                assert (found.headers["x-route-tier"], found.headers["x-route-reason"]) == wanted

    with running(text, (flash, pro), REDIS_URL=valkey) as (url, _):
        asyncio.run(main(Port(int(url.rpartition(":")[2]))))
    with Valkey.from_url(valkey) as client:
        kept = {name: client.get(name) for name in client.keys("tg1:*entry:header:*")}
        assert len(kept) == 1
        assert all(3500 < client.ttl(name) <= 3600 for name in kept)
        assert SIMPLE.encode() not in b"".join(value or b"" for value in kept.values())


def test_a_session_is_asked_for_in_the_same_write_as_admission(flash: Sim, pro: Sim, valkey: str) -> None:
    policy = sessions(flash, pro)

    async def scenario(store: RedisStore) -> None:
        await store.admit("ann", WIDE, None)
        with Valkey.from_url(valkey) as client:
            before = client.info("stats")["total_reads_processed"]
            request = asked(body(), headers=HERE)
            remembered = recalling(request, session_keys(request, policy) or SessionKeys(None, b""), store)
            assert remembered
            await store.admit("ann", WIDE, None)
            assert await remembered is None
            assert client.info("stats")["total_reads_processed"] - before == 2  # one of them asks for this figure

    on(valkey, scenario)  # type: ignore[arg-type]  # the store of that URL is a RedisStore


async def test_a_store_that_stands_still_is_waited_for_less_than_admission_waits(flash: Sim, pro: Sim) -> None:
    policy, request = sessions(flash, pro), asked(body(), headers=HERE)
    async with embedded() as url:
        with Valkey.from_url(url) as client:
            pid = int(client.info("server")["process_id"])
        store = RedisStore(url)
        await store.admit("ann", WIDE, None)
        os.kill(pid, signal.SIGSTOP)
        try:
            remembered = recalling(request, session_keys(request, policy) or SessionKeys(None, b""), store)
            assert remembered
            admitted = asyncio.create_task(store.admit("ann", WIDE, None))
            await asyncio.wait({remembered, admitted}, return_when=asyncio.FIRST_COMPLETED)
            assert (remembered.done(), admitted.done()) == (True, False)
            assert await remembered is None
            assert (await admitted).allowed
        finally:
            os.kill(pid, signal.SIGCONT)
            await store.close()


async def test_while_the_store_stands_still_requests_are_decided_without_their_session(flash: Sim, pro: Sim) -> None:
    async with embedded() as url:
        with Valkey.from_url(url) as client:
            pid = int(client.info("server")["process_id"])
        store = RedisStore(url)
        async with gateway(sessions(flash, pro), store) as gate:
            tier = ""
            async with asyncio.timeout(PATIENCE):
                while tier != "pro":  # a look-up that takes its whole budget, on a busy machine, is as none
                    assert (await gate.ask(body(COMPLEX), x_session_id="a")).headers["x-route-tier"] == "pro"
                    tier = (await gate.ask(body(), x_session_id="a")).headers["x-route-tier"]
            os.kill(pid, signal.SIGSTOP)
            try:
                found = [await gate.ask(body(), x_session_id="a") for _ in range(3)]
            finally:
                os.kill(pid, signal.SIGCONT)
            assert [answer.status for answer in found] == [200] * 3
            assert {answer.headers["x-route-tier"] for answer in found} == {"flash"}
