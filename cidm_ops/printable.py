"""Texts that others wrote into their files, as a terminal, a log or a page can show them: control codes are shown, never obeyed."""

import re

UNSEEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
CODES = re.compile(f"[{UNSEEN}]")


def printable(text: str) -> str:
    """A text of several lines: control codes, and those that turn the direction of writing, as escapes such as ``\\x1b``."""
    return CODES.sub(lambda m: ascii(m[0])[1:-1], text)


def one_line(text: object) -> str:
    """The same with all white space as single blanks."""
    return printable(" ".join(str(text).split()))


def brief(text: object, most: int = 300) -> str:
    """Cut off the one line where another library's words go on for pages."""
    line = one_line(text)
    return line if len(line) <= most else f"{line[:most].rstrip()}..."
