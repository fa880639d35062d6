"""Standard streams that never fail: closed ones discard text, limited encodings get the nearest letters."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from io import TextIOWrapper

ERRORS = "hydrabench-transliterate"
ASCII = "hydrabench_ascii"  # under its own name, click takes ASCII for a mistake and writes UTF-8 to it
_LETTERS = {
    "∞": "inf", "σ": "sigma", "ε": "epsilon", "α": "alpha", "β": "beta", "κ": "kappa", "γ": "gamma", "η": "eta",
    "×": "x", "·": "*", "≤": "<=", "≥": ">=", "≈": "~", "±": "+-", "−": "-", "–": "-", "—": "-", "…": "...",
    "→": "->", "←": "<-", "∈": "in", "√": "sqrt", "‖": "||", "“": '"', "”": '"', "‘": "'", "’": "'", "✓": "yes",
}  # fmt: skip


def open_streams() -> None:
    """Let stdout and stderr print whatever this program says.

    A descriptor that the caller closed is opened on the null device: otherwise the next file that is opened would get
    its number, and what libraries print would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=ASCII if is_ascii else None, errors=ERRORS)


def _transliterate(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace what an encoding lacks by letters that it has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_nearest, error.object[error.start : error.end])), error.end


def _nearest(sign: str) -> str:
    plain = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return _LETTERS.get(sign) or plain or ascii(sign)[1:-1]


def _ascii(name: str) -> codecs.CodecInfo | None:
    """Find ASCII under another name."""
    found = codecs.lookup("ascii")
    readers = found.streamreader, found.streamwriter, found.incrementalencoder, found.incrementaldecoder
    return codecs.CodecInfo(found.encode, found.decode, *readers, name=ASCII) if name == ASCII else None


codecs.register_error(ERRORS, _transliterate)
codecs.register(_ascii)
