"""What did operators decide?   The package's one public module."""

import os
from collections.abc import Mapping
from pathlib import Path

import gateway
from gateway.policy.calibrated import calibration_name
from gateway.policy.candidate import build_policy
from gateway.policy.differences import differences
from gateway.policy.file import Candidate, Policy, serving
from gateway.policy.holdback import Holdback, Most, Weak
from gateway.policy.keeping import Caching, Sessions
from gateway.policy.load import Document, contents
from gateway.policy.load import read as read_document
from gateway.policy.model import LOCAL, Price, Reason, Tier, TierLimits, Triage, seconds, window_of
from gateway.policy.plans import Budget, Callers, Plan
from gateway.policy.problems import PolicyError, Problem, place_in, suggestion
from gateway.policy.prompts import Prompt
from gateway.policy.recording import Recording, Shadow
from gateway.policy.rules import Bands, Rule, Split, Step
from gateway.policy.schema import schema, spelled
from gateway.policy.trials import Expect, PolicyTest, StubVerdict, TestCaller, TestVerdict

__all__ = [
    "LOCAL", "Bands", "Budget", "Caching", "Callers", "Candidate", "Document", "Expect", "Holdback", "Most", "Plan",
    "Policy", "PolicyError", "PolicyTest", "Price", "Problem", "Prompt", "Reason", "Recording", "Rule", "Sessions",
    "Shadow", "Split", "Step", "StubVerdict", "TestCaller", "TestVerdict", "Tier", "TierLimits", "Triage", "Weak",
    "build_policy", "calibration_name", "differences", "file_text", "load_policy", "open_policy", "packaged",
    "read_document", "schema", "seconds", "serving", "spelled", "suggestion", "window_of",
]  # fmt: skip


def load_policy(source: str | Path, env: Mapping[str, str] | None = None) -> Policy:
    """The policy in a file (a Path) or in a text (a str), checked; `env` fills its variables, os.environ by default.

    Raises PolicyError with every problem as `file:line:col: key.path: what`. Does not run the file's own tests.
    """
    return open_policy(source, env)[0]


def open_policy(source: str | Path, env: Mapping[str, str] | None = None) -> tuple[Policy, Document]:
    """As load_policy, with the document that says where each key stands."""
    text, name = (source, "policy.yaml") if isinstance(source, str) else (file_text(source), str(source))
    document = read_document(text, name, os.environ if env is None else env)
    return build_policy(document), document


def file_text(path: Path) -> str:
    """The file's text. Raises PolicyError when it cannot be read as UTF-8."""
    try:
        return contents(str(path)).decode("utf-8")
    except OSError as error:
        raise PolicyError([Problem(str(path), 1, 1, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        place = place_in(error.object, error.start)
        raise PolicyError([Problem(str(path), *place, "", f"not UTF-8: {error.reason}")]) from None


def packaged() -> Path:
    """The file that comes with the program: beside the package in a checkout, inside it when installed."""
    package = Path(gateway.__file__).parent
    beside = package.parent / "policies" / "default.yaml"
    return beside if beside.is_file() else package / "policies" / "default.yaml"
