"""Which verdict does the simulated classifier give on a conversation?   By surface features of the text."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from backends.sim.protocol import JSON, ChatRequest, content_text

LABELS = ("simple", "complex")
PAIRS = (LABELS, ("likely", "unlikely"))  # the labels that questions use for simple and complex

# Surface features, each with its weight in log-odds of `complex`. They read structure first (code, formulas, several
# constraints, length), then words of five languages; chosen by hand, never fitted to a benchmark.
_FEATURES: tuple[tuple[re.Pattern[str], float], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), weight)
    for pattern, weight in (
        (r"\b(prove|proof|theorem|lemma|derive|disprove)\b|证明|推导|доказ|beweis|d[ée]montr|demuestr", 4.0),
        (r"```|^[ \t]*(def|class|import|fn|func|public|SELECT)\b|[{};][ \t]*$|->|=>", 1.2),
        (r"[=<>≤≥]\s*[-\w(]+\s*[-+*/^]|\\[a-z]+\{|\$[^$\n]+\$|[∑∫√∀∃∈]|\b\d+\s*\^|\bx\^|O\(", 1.4),
        (
            r"\b(algorithm|complexity|optimi[sz]e|refactor|debug|deadlocks?|race condition|concurren\w+|distributed)\b",
            1.6,
        ),
        (r"算法|复杂度|优化|并发|алгоритм|оптимиз|algorithmus|algoritmo|algorithme", 1.6),
        (r"\b(integral|equation|probability|matrix|eigen\w+|polynomial|differential|combinatori\w+|bayes\w*)\b", 1.4),
        (r"积分|方程|概率|矩阵|уравнен|интеграл|вероятност|gleichung|ecuaci|[ée]quation", 1.4),
        (
            r"\b(design|architect\w*|implement|lock-free|solve|migrat\w+|trade-?offs?|fault-toleran\w+|scalable)\b",
            1.3,
        ),
        (r"设计|实现|架构|разработ|спроект|entwirf|implementier|diseñ|con[çc]o(is|ir)", 1.3),
        (r"step[- ]by[- ]step|\breason(ing)?\b|\bcarefully\b|\bwhy\b.{0,200}\?|分析|为什么|почему|warum|pourquoi", 0.7),
        (r"\b(compare|analy[sz]e|evaluate|critique|assess|diagnose|root cause)\b|сравни|vergleich|compar", 1.0),
        (r"\b(legal|contract|diagnosis|clinical|regulat\w+|compliance|tax)\b", 0.7),
        (r"\b(must|constraint|such that|at most|at least|given that|assume|subject to|unless)\b", 0.5),
        (r"^[ \t]*(\d+[.)]|[-*])[ \t]+\S", 0.4),
    )
)
_EASY = re.compile(
    r"^\s*(hi|hello|hey|thanks?|thank you|good (morning|evening)|bye|ok(ay)?|yes|no|你好|谢谢|привет|спасибо|hallo"
    r"|danke|hola|bonjour|merci)\b|\b(capital of|translate|spell|synonym|define|what (time|day)|who (is|was|wrote)"
    r"|summari[sz]e|rewrite|fix the (typo|grammar))\b|翻译|переведи|übersetz|traduc",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"\b(?:classify|label|mark|rate|answer|treat|route)\b[^.\n]{0,60}?\b(simple|complex)\b", re.IGNORECASE
)
_JSON_ASK = re.compile(r"\bjson\b|\{", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The classifier's label for a conversation, and the probability of `complex`."""

    label: str
    p_complex: float


def log_odds(text: str, turns: int) -> float:
    """Log-odds of `complex`, from the recent user messages `text` and the number of user turns."""
    told, dense = _surface(text[:20_000])
    # A character of Chinese or Japanese says about as much as three letters.
    size = len(text) + 2 * dense
    score = -1.9 + told + 0.4 * math.log2(max(size, 12) / 90)
    if _EASY.search(text) and size < 300:
        score -= 1.5
    return score + 0.15 * min(turns - 1, 6)


@lru_cache(64)  # the same is asked again and again, and what is long takes as long as all else
def _surface(text: str) -> tuple[float, int]:
    """What the features weigh, and how many characters are Chinese or Japanese."""
    hits = ((weight, len(pattern.findall(text))) for pattern, weight in _FEATURES)
    return sum(weight * min(count, 3) ** 0.5 for weight, count in hits), sum("\u3040" <= ch <= "\u9fff" for ch in text)


def judge(messages: list[JSON], obedient: bool) -> Verdict:
    """The verdict on a conversation; `obedient`: a label demanded in its text is taken (prompt injection works)."""
    said = [content_text(m) for m in messages if m["role"] == "user"] or [content_text(m) for m in messages]
    recent = "\n".join(said[-3:])
    order = _ORDER.search("\n".join(content_text(m) for m in messages)) if obedient else None
    if order:
        label = order.group(1).lower()
        return Verdict(label, 0.97 if label == "complex" else 0.03)
    p = 1.0 / (1.0 + math.exp(-log_odds(recent, len(said))))
    p = min(max(p, 0.002), 0.998)
    return Verdict("complex" if p >= 0.5 else "simple", p)


def question_at(request: ChatRequest, allowed: list[str] | None) -> int | None:
    """Index of the triage question among the messages, None when this is no triage request.

    It is one when both labels are among the `allowed` outputs, or, if the output is unconstrained (None), when the last
    message asks for JSON and has both labels in quotes.
    """
    last = len(request.messages) - 1
    if allowed is not None:
        return last if pair(allowed) else None
    return last if pair(_quoted(request)) and _JSON_ASK.search(_asked(request)) else None


def pair(words: list[str]) -> tuple[str, str] | None:
    """The pair of labels that is among `words`, None without one."""
    return next((pair for pair in PAIRS if set(pair) <= set(words)), None)


def spelled(request: ChatRequest, allowed: list[str] | None) -> tuple[str, str]:
    """The labels that a triage question uses for simple and complex."""
    return pair(allowed if allowed is not None else _quoted(request)) or LABELS


def _quoted(request: ChatRequest) -> list[str]:
    return re.findall(r"[\"'`](\w+)[\"'`]", _asked(request))


def _asked(request: ChatRequest) -> str:
    return content_text(request.messages[-1]) + _system_text(request.messages)


def subject(messages: list[JSON], question: int, *, whole: bool = False) -> list[JSON]:
    """The conversation to classify: the messages before the question, or, if there are none but system messages, those
    from it on. `whole`: with the system messages before it."""
    before = [m for m in messages[:question] if m["role"] not in ("system", "developer")]
    return (messages[:question] if whole else before) if before else messages[question:]


def _system_text(messages: list[JSON]) -> str:
    return "\n".join(content_text(m) for m in messages if m["role"] in ("system", "developer"))
