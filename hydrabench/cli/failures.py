"""Turn errors into one line: what was wrong, the reason, and the next step."""

from __future__ import annotations

import errno
import os
import re

from hydrabench.errors import HydrabenchError, is_out_of_memory

LONGEST_MESSAGE = 4000  # characters of a message
LONGEST_PATH = 200
_NO_ROOM = "free some space or choose a folder on another disk; what was finished is kept, and --resume goes on from it"
# What torch.save says when it cannot write; it does not tell why.
_TORCH_WRITES = ("PytorchStreamWriter failed", "unexpected pos", "iostream error")
_NEXT_STEPS = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), then go on with --resume",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links go round in a circle; check the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk or its connection fails; check it, then go on with --resume",
}


def one_line(error: BaseException) -> str | None:
    """Return what to tell the user about an error, None if only its traceback tells it.

    One line for mistakes of the user's, for everything that the operating system refuses, and for memory that ran out.
    """
    text = _text(error)
    if text is None:
        return None
    flat = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return flat if len(flat) <= LONGEST_MESSAGE else f"{flat[: LONGEST_MESSAGE // 2]} … {flat[-LONGEST_MESSAGE // 2 :]}"


def _text(error: BaseException) -> str | None:
    if isinstance(error, HydrabenchError):
        return str(error)
    if isinstance(error, OSError):
        return _of_system(error)
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # from libraries in Rust, such as safetensors
        return _refused(int(found[1]), None)
    return _of_limits(error)


def _of_limits(error: BaseException) -> str | None:
    """Return a message for what is too deep, too large or not to be written down."""
    if isinstance(error, RecursionError):
        return "an input is nested too deeply to be read; flatten it"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:LONGEST_PATH]!r} is not valid Unicode, which files of results need; rename it"
    if isinstance(error, MemoryError) or (isinstance(error, Exception) and is_out_of_memory(error)):
        return f"out of memory: {str(error) or 'the process got no more'}; use a machine with more, or a smaller input"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITES):
        return f"a file could not be written, the disk is full or the file too large; {_NO_ROOM}"
    return None


def _of_system(error: OSError) -> str:
    if error.errno is None:
        return f"reading or writing failed: {error}"
    return _refused(error.errno, error.filename2 or error.filename)


def _refused(number: int, path: object) -> str:
    """Return what the operating system says, about which path, and what to do."""
    reason = os.strerror(number)
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    shown = name if len(name) <= LONGEST_PATH else f"{name[: LONGEST_PATH // 2]}…{name[-LONGEST_PATH // 2 :]}"
    about = f"{shown}: " if shown else "reading or writing failed: "
    step = _NEXT_STEPS.get(number)
    return f"{about}{reason[0].lower()}{reason[1:]}{f'; {step}' if step else ''}"
