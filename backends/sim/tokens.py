"""How is text tokenized?"""

import re
import zlib

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
END_THINK = "</think>"

# Ids of the markers as published with DeepSeek's encoding (deepseek_v4.md 1.5); other pieces get a stable hash.
_IDS = {BOS: 0, EOS: 1, USER: 128803, ASSISTANT: 128804, THINK: 128821, END_THINK: 128822}
_PIECE = re.compile(
    r"<｜[^｜\n]{1,32}｜>|</?think>"
    r"|[぀-ヿ一-鿿가-힯]{1,2}"
    r"| ?[^\W\d_]{1,7}"
    r"|\d{1,3}"
    r"| ?(?:[^\w\s<]|_){1,3}"
    r"|\n+| {1,16}|\s|.",
    re.DOTALL,
)


def pieces(text: str) -> list[str]:
    """Tokens of `text`, about four characters each; joined they give `text` back exactly."""
    return _PIECE.findall(text)


def token_id(piece: str) -> int:
    """A stable id in V4's vocabulary range [0, 129280); collisions are possible and harmless."""
    known = _IDS.get(piece)
    return known if known is not None else 2 + zlib.crc32(piece.encode()) % 128000
