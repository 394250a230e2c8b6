"""Which words of a user's message are the user's own?

Coding agents write in the user's place, too. What they put between tags of theirs is a note to the model, which comes
and goes between the requests of one turn: it is not what the user asks.
"""

from gateway.body import Message

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
    said = [content] if isinstance(content, str) else [part.text for part in content or () if part.text]
    return [text for text in said if not _noted(text)]


def _noted(text: str) -> bool:
    return text.lstrip().startswith(_OPENINGS) and text.rstrip().endswith(_ENDINGS)
