"""Which fields of a request body do we decide on?   Decoded and checked; the rest stays the client's own bytes."""

from codecs import BOM_UTF8
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec

from gateway.body import MAX_VALUES, Body, real, unreadable
from gateway.errors import UNREADABLE, BadRequest

MAX_CHOICES = 16  # `n` multiplies the work of one request; vLLM ran out of memory on huge values (CVE-2026-34756)
MAX_PROMPTS = 2048  # of a request, times `n`: each is a job of its own to a server; OpenAI's bound for embeddings
MAX_TOKENS = 1 << 32  # more than any model makes; of so many, stores can add up what they cost in 64 bits
MAX_MESSAGES = 100_000  # Anthropic's own bound; of messages, and of one's pieces
MAX_TOOLS = 4096
MAX_OPTION = 1 << 18  # bytes of a member of OPTIONS, which are decoded whole
OPTIONS = ("stream_options", "response_format", "chat_template_kwargs", "metadata",
           "structured_outputs", "text", "output_config")  # fmt: skip
MAX_LIST = 1 << 13  # bytes of a list that vLLM goes through at each token: 500,000 stops took it 54 s (PR 51447)
LISTS = ("stop", "stop_sequences", "stop_token_ids", "bad_words")
LONGEST = dict.fromkeys(LISTS, MAX_LIST) | dict.fromkeys(OPTIONS, MAX_OPTION)

T = TypeVar("T")
Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
Length = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]  # of 0 SGLang makes no bound, past what a tier sets
TopK = Annotated[float, msgspec.Meta(le=(1 << 31) - 1)]  # a larger one ended SGLang 0.5.23
Likely = Annotated[float, msgspec.Meta(le=128)]  # as did more than it knows tokens; OpenAI's bound, and vLLM's, is 20
Turns = Annotated[list[T], msgspec.Meta(max_length=MAX_MESSAGES)]
Prompts = Annotated[list[T], msgspec.Meta(max_length=MAX_VALUES)]
Prompt = str | Prompts[str | int | Prompts[str | int]]
Tools = Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_TOOLS)]


class Link(msgspec.Struct):
    url: str | None = None
    content_hash: str | None = None  # by which SGLang finds a picture, as vLLM does by uuid


class Part(msgspec.Struct):
    """One piece of a message's content."""

    type: str
    text: str | None = None
    image_url: str | Link | None = None
    video_url: str | Link | None = None
    audio_url: str | Link | None = None
    file_url: str | Link | None = None
    uuid: str | int | None = None  # by which vLLM finds media that came before, whoever sent them

    def urls(self) -> list[str]:
        """Every address in this piece, and every name by which a server may have it; which of them a server follows is
        the server's choice."""
        links = (self.image_url, self.video_url, self.audio_url, self.file_url)
        told = [
            (link.url, link.content_hash) if isinstance(link, Link) else (link,) for link in links if link is not None
        ]
        return [one for both in told for one in both if one is not None]


class Message(msgspec.Struct, gc=False):
    role: str
    content: str | Turns[Part] | None = None
    tools: Tools | None = None  # which SGLang adds to the request's

    def text(self) -> str:
        """The words of this message, media left out."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


class Fields(msgspec.Struct, gc=False):
    """The fields that we decide on, type-checked; `null` means absent, as in OpenAI's API."""

    model: str | None = None
    messages: Turns[Message] | None = None
    prompt: Prompt | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    temperature: float | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Length | None = None
    tools: Tools | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    metadata: dict[str, Any] | None = None
    top_k: TopK | None = None
    top_logprobs: Likely | None = None
    logprobs: bool | Likely | None = None

    def texts(self) -> list[str]:
        """A completion's prompt; prompts of token ids have none."""
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt or ()
        return [text for text in given if isinstance(text, str)]

    def prompts(self) -> int:
        """How many prompts these are; a list of token ids is one."""
        said = self.prompt
        return len(said) if isinstance(said, list) and said and not isinstance(said[0], int) else 1


class Chat(Fields, gc=False):
    """Those of a chat, which has an answer; a completion may want none."""

    max_tokens: Length | None = None


_FIELDS = msgspec.json.Decoder(Fields, float_hook=real)
_CHAT = msgspec.json.Decoder(Chat, float_hook=real)


def read_as(shape: "msgspec.json.Decoder[T]", data: bytes) -> tuple[Body, T]:
    """The body and its decoded fields. Raises BadRequest with the field's name as `param`.

    What is accepted can be decoded again: it is UTF-8 after its byte order mark, if any, and not nested so deep that a
    caller's stack decides.
    """
    if not data.isascii():
        try:
            str(data, "utf-8")
        except UnicodeDecodeError as error:
            told = f"The request body is not valid UTF-8: {error.reason} at byte {error.start}. Send it uncompressed."
            raise BadRequest(told) from None
        data = data.removeprefix(BOM_UTF8)
    body = Body(data)
    for name, most in LONGEST.items() if len(data) > MAX_LIST else ():
        if body.size(name) > most:
            raise BadRequest(f"'{name}' is over {most} bytes.", param=name)
    try:
        return body, shape.decode(data)
    except UNREADABLE as error:
        raise unreadable(error) from None


read = partial(read_as, _FIELDS)
chat = partial(read_as, _CHAT)
