"""Which words of a conversation are the user's own, and which were its first?

Coding agents write in the user's place, too. What they put between tags of theirs is a note to the model, which comes
and goes between the requests of one turn: it is not what the user asks.
"""

from collections.abc import Sequence

from gateway.fields import Fields, Message

OPENERS, OPENING = 16, 2048  # messages, and characters of each, that tell a conversation from others

# A whole text between a pair of them is a note, of Claude Code, Qwen Code and opencode, of Codex, of Cline and its kin.
TAGS = ("system-reminder", "environment_context", "environment_details")
_OPENINGS, _ENDINGS = tuple(f"<{tag}>" for tag in TAGS), tuple(f"</{tag}>" for tag in TAGS)


def speaks(message: Message) -> bool:
    """Whether a message is the user's, and not notes alone."""
    content = message.content
    if message.role != "user":
        return False
    if isinstance(content, str):
        return not _noted(content)
    return not content or any(not part.text or not _noted(part.text) for part in content)


def own(message: Message) -> list[str]:
    """The texts of a message that are no notes."""
    content = message.content
    if isinstance(content, str):
        return [] if _noted(content) else [content]
    return [part.text for part in content or () if part.text and not _noted(part.text)]


def opening(messages: Sequence[Message]) -> Sequence[Message]:
    """What was said before the first answer to a user: the same in every later turn of a conversation."""
    asked = False
    for at, message in enumerate(messages):
        if asked and message.role == "assistant":
            return messages[:at]
        asked = asked or message.role == "user"
    return messages


def beginning(fields: Fields) -> str:
    """How a conversation began, or a completion's prompt, cut short. Of a message the end counts: those of one program
    begin alike, with its instructions or an agent's notes."""
    if not fields.messages:
        given = fields.prompt or ""
        return str((given[0] if given and isinstance(given[0], list) else given)[:OPENING])
    return "\n".join([message.text()[-OPENING:] for message in opening(fields.messages[:OPENERS])])


def _noted(text: str) -> bool:
    return text.lstrip().startswith(_OPENINGS) and text.rstrip().endswith(_ENDINGS)
