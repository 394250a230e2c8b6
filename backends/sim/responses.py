"""What does vLLM's /v1/responses answer?"""

import itertools
from typing import Any

import msgspec

from backends.sim.dialects import Block, begins, blocks
from backends.sim.generate import Generation, collected
from backends.sim.protocol import JSON
from backends.sim.replies import Shape
from backends.sim.wire import Wire

DELTAS = {
    "content": "output_text",
    "refusal": "refusal",
    "reasoning": "reasoning_text",
    "tool": "function_call_arguments",
}
CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}


async def whole(generation: Generation, shaped: Shape, wire: Wire) -> None:
    made = (await collected(generation))[0]
    await wire.json(200, _response(generation, shaped, blocks(made)))


async def stream(generation: Generation, shaped: Shape, wire: Wire) -> None:
    """Send a streamed answer of /v1/responses: numbered events; each output item is added, sent by deltas, and done."""
    said = _Numbered(wire)
    found: list[Block] = []
    async for _, step in generation.steps():
        if not found:
            begun = _response(generation, shaped, []) | {"status": "in_progress", "usage": None}
            await said("response.created", response=begun)
            await said("response.in_progress", response=begun)
        if begins(found, step):
            await _done(said, found)
            found.append(Block(step.kind, step.call, []))
            await _added(said, found)
        found[-1].steps.append(step)
        await said(
            f"response.{DELTAS[step.kind]}.delta", **_place(found), content_index=0, delta=step.text, logprobs=[]
        )
    await _done(said, found)
    ended = _response(generation, shaped, found)
    kind = "response.incomplete" if ended["status"] == "incomplete" else "response.completed"
    last = msgspec.json.encode({"type": kind, "sequence_number": next(said.numbers), "response": ended})
    await wire.done(b"event: " + kind.encode() + b"\ndata: " + last + b"\n\n")


class _Numbered:
    def __init__(self, wire: Wire) -> None:
        self._wire, self.numbers = wire, itertools.count()

    async def __call__(self, kind: str, **body: Any) -> None:
        await self._wire.event({"type": kind, "sequence_number": next(self.numbers), **body}, kind)


def _place(found: list[Block]) -> JSON:
    return {"item_id": f"item_{len(found)}", "output_index": len(found) - 1}


async def _added(said: _Numbered, found: list[Block]) -> None:
    item = _item(len(found), found[-1]) | {"status": "in_progress"}
    empty: JSON = {"content": []} if "content" in item else {}
    await said("response.output_item.added", output_index=len(found) - 1, item=item | empty)
    if found[-1].kind == "content":
        part: JSON = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        await said("response.content_part.added", **_place(found), content_index=0, part=part)


async def _done(said: _Numbered, found: list[Block]) -> None:
    if not found:
        return
    if found[-1].kind == "content":
        await said("response.output_text.done", **_place(found), content_index=0, text=found[-1].text, logprobs=[])
    await said("response.output_item.done", output_index=len(found) - 1, item=_item(len(found), found[-1]))


def _item(number: int, block: Block) -> JSON:
    own = {"id": f"item_{number}", "status": "completed"}
    if block.kind == "content":
        part: JSON = {"type": "output_text", "text": block.text, "annotations": [], "logprobs": None}
        return {**own, "type": "message", "role": "assistant", "content": [part]}
    if block.kind == "refusal":
        refused = {"type": "refusal", "refusal": block.text}
        return {**own, "type": "message", "role": "assistant", "content": [refused]}
    if block.kind == "reasoning":
        return {**own, "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": block.text}]}
    call = block.call or {}
    return {**own, "type": "function_call", "call_id": call.get("id"), "name": call.get("name"),
            "arguments": block.text}  # fmt: skip


def _response(generation: Generation, shaped: Shape, found: list[Block]) -> JSON:
    cut = CUT.get(generation.plans[0].finish)
    prompt, made = len(generation.sequence.tokens), generation.entry.tokens
    thought = sum(len(block.steps) for block in found if block.kind == "reasoning")
    usage = {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": generation.sequence.cached},
             "output_tokens": made, "output_tokens_details": {"reasoning_tokens": thought},
             "total_tokens": prompt + made}  # fmt: skip
    return {"id": shaped.id.replace("chatcmpl-", "resp_"), "object": "response", "created_at": shaped.created,
            "error": None, "incomplete_details": {"reason": cut} if cut else None,
            "model": shaped.model, "status": "incomplete" if cut else "completed", "store": False,
            "output": [_item(number + 1, block) for number, block in enumerate(found)], "usage": usage,
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            "temperature": 1.0, "top_p": 1.0}  # fmt: skip
