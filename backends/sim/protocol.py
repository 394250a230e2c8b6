"""Which fields does a request have, and which requests does vLLM refuse?"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

JSON = dict[str, Any]
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MAX_LOGPROBS = 20
DETAIL = "detail"  # a RequestError of this kind is a bare {"detail": message}

Positive = Annotated[int, Meta(ge=1)]


class RequestError(Exception):
    """A request that vLLM refuses: message, the invalid field, HTTP status and error type."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, kind: str = "BadRequestError"
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.kind = message, param, status, kind

    def body(self) -> JSON:
        """vLLM's error object, or that of its web framework (FastAPI)."""
        if self.kind == DETAIL:
            return {"detail": self.message}
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Common(msgspec.Struct, kw_only=True):
    """Fields that chat and text completions share; unknown fields are ignored, as vLLM does."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = 1
    max_tokens: Positive | None = None
    stop: str | list[str] | None = None
    temperature: Annotated[float, Meta(ge=0.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    seed: int | None = None
    priority: int = 0
    cache_salt: str | None = None
    request_id: str | None = None
    ignore_eos: bool = False
    response_format: JSON | None = None
    structured_outputs: JSON | None = None
    guided_choice: list[str] | None = None
    guided_json: JSON | str | None = None

    def stops(self) -> list[str]:
        """Stop strings, the empty one left out."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]

    def wants_usage(self) -> bool:
        """Is a last chunk with usage asked for?"""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Common, kw_only=True):
    """Body of `/v1/chat/completions`."""

    messages: list[JSON]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[JSON] | None = None
    tool_choice: str | JSON | None = None
    reasoning_effort: str | None = None
    thinking_token_budget: Annotated[int, Meta(ge=0)] | None = None
    chat_template_kwargs: JSON | None = None

    def limit(self) -> int | None:
        """The most tokens to produce, if the client set one."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Common, kw_only=True):
    """Body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = False
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None

    def limit(self) -> int | None:
        """The most tokens to produce; OpenAI's and vLLM's default is 16."""
        return self.max_tokens or 16


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of `/tokenize`: a prompt or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[JSON] | None = None
    tools: list[JSON] | None = None
    chat_template_kwargs: JSON | None = None
    return_token_strs: bool | None = False


Request = ChatRequest | CompletionRequest
T = TypeVar("T")


def decode(raw: bytes, shape: type[T]) -> T:
    """`raw` as `shape`. Raises RequestError on anything that is not such a JSON object."""
    try:
        return msgspec.json.decode(raw, type=shape, strict=False)
    except msgspec.ValidationError as error:
        raise RequestError(str(error), _blame(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"JSON decode error: {error}") from error


def _blame(message: str) -> str | None:
    """The top-level field that msgspec's message points at."""
    if "`$." in message:
        return message.rsplit("`$.", maxsplit=1)[-1].rstrip("`").split(".")[0].split("[")[0]
    if "missing required field `" in message:
        return message.rsplit("field `", maxsplit=1)[-1].split("`", maxsplit=1)[0]
    return None


def check(request: Request) -> None:
    """vLLM's rules across fields. Raises RequestError."""
    if request.stream_options is not None and not request.stream:
        raise RequestError("Stream options can only be defined when `stream=True`.", "stream_options")
    if request.cache_salt == "":
        raise RequestError("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    if isinstance(request, ChatRequest):
        _check_chat(request)
    elif not request.prompt:
        raise RequestError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")


def _check_chat(request: ChatRequest) -> None:
    if request.top_logprobs and not request.logprobs:
        raise RequestError("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    check_messages(request.messages)
    names = [tool_name(tool) for tool in request.tools or []]
    if request.tool_choice in (None, "none"):
        return
    if not names and request.tool_choice != "auto":
        raise RequestError("When using `tool_choice`, `tools` must be set.", "tool_choice")
    _check_tool_choice(request.tool_choice, names)


def _check_tool_choice(choice: str | JSON | None, names: list[str]) -> None:
    if isinstance(choice, str):
        if choice not in ("auto", "required"):
            raise RequestError(f"Invalid value for `tool_choice`: {choice}!", "tool_choice")
        return
    if choice and named_tool(choice) not in names:
        raise RequestError(
            "The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice"
        )


def named_tool(choice: JSON) -> str:
    """The function a named `tool_choice` asks for; empty if the object has another shape."""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def tool_name(tool: JSON) -> str:
    """A tool's function name. Raises RequestError on a tool that has none."""
    name = named_tool(tool)
    if not name:
        raise RequestError("Every tool needs a `function` with a `name`.", "tools")
    return name


def check_messages(messages: list[JSON]) -> None:
    """Each message has a known role and content that is text, parts or null. Raises RequestError."""
    if not messages:
        raise RequestError("List should have at least 1 item after validation, not 0", "messages")
    for message in messages:
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise RequestError(f"Unknown role: {role!r}", "messages")
        _check_content(message.get("content"))


def _check_content(content: object) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RequestError("Message content must be a string or a list of parts.", "messages")
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text", ""), str):
            raise RequestError("A content part must be an object with `type`.", "messages")
        if part.get("type") not in ("text", "input_text", "refusal"):
            raise RequestError(f"This model takes text only, not {part.get('type')!r} parts.", "messages")


def content_text(message: JSON) -> str:
    """The text of a message, parts joined by newlines as vLLM does."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""
