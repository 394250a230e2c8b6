"""Which policy does a policy file describe, and which candidate does it put on trial?"""

from dataclasses import replace

from gateway.policy.check import build
from gateway.policy.file import Candidate, NamedCandidate, Policy
from gateway.policy.load import Document, read
from gateway.policy.problems import PolicyError

KEY = "candidate"
PLACE = (KEY, "policy")


def build_policy(document: Document) -> Policy:
    """The policy that `document` describes, with its candidate, for which the same budget of all callers counts. Raises
    PolicyError with all problems of its own file, or where that has none of the candidate's.
    """
    policy = build(document)
    if document.data.get(KEY) is None:
        return policy
    named = NamedCandidate(**document.data[KEY])
    other = document.candidate = opened(document, named.policy)
    if other.data.get(KEY) is not None:
        other.blame((KEY,), "a candidate has none of its own: leave this out", key=True)
    candidate = build(other)
    if lacking := [plan for plan in policy.callers.plans if plan not in candidate.callers.plans]:
        document.blame(PLACE, f"callers keep their plans, and it lacks {', '.join(lacking)}")
        raise PolicyError(document.problems)
    candidate = replace(candidate, budget=policy.budget)  # by turns with another window it would always begin anew
    return replace(policy, candidate=Candidate(candidate, named.canary, named.shadow))


def opened(document: Document, name: str) -> Document:
    """The document of the candidate's file, whose `name` is relative to this one. Raises PolicyError."""
    try:
        file, text = document.beside(name)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no name of a file, or not UTF-8"
        document.blame(PLACE, f"cannot be read: {why}")
        raise PolicyError(document.problems) from None
    other = read(text, file, document.env)
    other.files, other.others = document.files, document.others
    return other
