"""Which words are the user's, in what coding agents send in its name."""

from typing import Any

import pytest

from gateway.body import Fields, Message, Part
from gateway.facts import conversation
from gateway.score import score
from gateway.words import own, speaks

REMINDER = "<system-reminder>\nAs you answer, know that 1 + 1 = 2.\n</system-reminder>\n\n"
WHERE = "<environment_context>\n  <cwd>/src</cwd>\n</environment_context>"
DETAILS = "\n<environment_details>\n# Visible files\na.py\n</environment_details>"
WORDS = "Why does <b>this</b> fail?"
IMAGE = Part("image", None)


def parts(*texts: str) -> list[Part]:
    return [Part("text", text) for text in texts]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (WORDS, [WORDS]),
        (REMINDER, None),
        (DETAILS, None),
        (parts(REMINDER, WORDS), [WORDS]),
        (parts(WORDS, DETAILS), [WORDS]),
        (parts(REMINDER, WHERE), None),
        ([*parts(REMINDER), IMAGE], []),
        ([IMAGE], []),
        ([], []),
        (None, []),
        ("", [""]),
        (f"{REMINDER}{WORDS}", [f"{REMINDER}{WORDS}"]),
        ("<system-reminder> what is that?", ["<system-reminder> what is that?"]),
        (f"<p>{WHERE}", [f"<p>{WHERE}"]),
    ],
)
def test_a_whole_text_between_an_agents_tags_is_a_note_and_all_else_the_users(
    content: Any, words: list[str] | None
) -> None:
    message = Message("user", content)
    assert speaks(message) == (words is not None)
    assert own(message) == (words or [])
    assert not speaks(Message("assistant", content))


def test_facts_and_score_look_at_the_users_words_not_at_an_agents_notes() -> None:
    plain = [Message("user", "Hi."), Message("assistant", "Yes?"), Message("user", WORDS)]
    noted = [
        Message("user", WHERE),
        Message("user", "Hi."),
        Message("assistant", "Yes?"),
        Message("user", parts(REMINDER * 9, WORDS, DETAILS)),
        Message("tool", "ok"),
        Message("user", REMINDER),
    ]
    (last, turns, context, _), (same, as_many, larger, _) = (
        conversation(Fields(messages=messages)) for messages in (plain, noted)
    )
    assert (list(last), turns) == (list(same), as_many) == ([WORDS], 2)
    assert larger > context, "the model reads them"
    for end in (6, 2):  # the second a follow-up, read with what it follows
        assert score(Fields(messages=noted[:end])) == score(Fields(messages=plain[: end // 2]))
    assert score(Fields(messages=[noted[1], noted[2], noted[1]])) == score(
        Fields(messages=[plain[0], plain[1], plain[0]])
    )
