"""Which words are the user's, in what coding agents send in its name."""

from typing import Any

import pytest

from gateway.facts import conversation
from gateway.fields import Fields, Message, Part, read
from gateway.score import score
from gateway.user_words import OPENERS, OPENING, beginning, own, speaks

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
    (last, turns, context, *_), (same, as_many, larger, *_) = (
        conversation(Fields(messages=messages)) for messages in (plain, noted)
    )
    assert (list(last), turns) == (list(same), as_many) == ([WORDS], 2)
    assert larger > context, "the model reads them"
    for end in (6, 2):  # the second a follow-up, read with what it follows
        assert score(Fields(messages=noted[:end])) == score(Fields(messages=plain[: end // 2]))
    assert score(Fields(messages=[noted[1], noted[2], noted[1]])) == score(
        Fields(messages=[plain[0], plain[1], plain[0]])
    )


def test_a_conversation_keeps_its_beginning_while_it_grows() -> None:
    def begun(*messages: tuple[str, Any]) -> str:
        return beginning(Fields(messages=[Message(*message) for message in messages]))

    first = (("system", "Be brief."), ("user", parts("hi")))
    assert begun(*first) == "Be brief.\nhi"
    assert begun(*first, ("assistant", "hello"), ("user", "more")) == begun(*first)
    greeted = (("assistant", "Yes?"), *first)
    assert begun(*greeted, ("assistant", "hello"), ("user", "more")) == begun(*greeted) == "Yes?\nBe brief.\nhi"
    assert begun(*[("user", "x" * 9000)] * 99) == "\n".join(["x" * OPENING] * OPENERS)


def test_conversations_of_one_program_begin_with_what_their_users_ask() -> None:
    same = [Message("system", "You are an agent. " * 999), Message("user", parts(REMINDER * 99, WORDS))]
    other = [same[0], Message("user", parts(REMINDER * 99, "Say hi."))]
    assert beginning(Fields(messages=same)) != beginning(Fields(messages=other))


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        (b'"once"', "once"),
        (b"[1,2]", "[1, 2]"),
        (b"[[1,2],[3]]", "[1, 2]"),
        (b"[[" + b"1," * 9000 + b"1]]", str([1] * OPENING)),
        (b"null", ""),
    ],
)
def test_a_completion_begins_with_its_first_prompt(prompt: bytes, begun: str) -> None:
    assert beginning(read(b'{"prompt":%b}' % prompt)[1]) == begun
