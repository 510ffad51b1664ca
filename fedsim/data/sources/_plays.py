"""Who says what in a play, from Project Gutenberg's plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator

DIRECTION = re.compile(
    r"[\[{][^\[\]{}]*[\]}]"
)  # [Exit.], over several lines where it needs them; {Aside.] as misprinted
UNCLOSED = re.compile(r"[\[{][^\[\]{}]*?\n\s*\n")  # a direction whose bracket was forgotten ends with its paragraph
SECTION = re.compile(r"(act|scene)\b|epilogue\.?$|the end$", re.IGNORECASE)
UPPER = re.compile(r"(?:\d\.? )?[A-Z][A-Z .,'&-]*\.?")  # HAMLET.  1 KEEPER.  ANTIPHOLUS OF SYRACUSE.
TITLE = re.compile(r"(?:\d )?[A-Z][a-z]+(?: [A-Z][a-z]+)*\.")  # Ham.  1 Clown.  Lady Capulet.
HEADINGS = re.compile(r"SONG|SPRING|WINTER|[IVX]+")  # upper-case lines inside a speech that name nobody
LONGEST_HEADER = 40


def speeches(text: str) -> Iterator[tuple[str, list[str]]]:
    """(role, spoken lines) of each speech of a play, in order, without stage directions and the list of persons.

    A speech begins with a line that follows a blank one and holds a name alone: in capitals, or, in the plays that use
    capitals for nothing, each word with a capital and a full stop at the end.
    """
    lines = _body(UNCLOSED.sub("\n\n", DIRECTION.sub("", text)))
    style = (
        UPPER if sum(_is_name(line, UPPER) for line in lines) > sum(_is_name(line, TITLE) for line in lines) else TITLE
    )
    before = ["", *lines[:-1]]
    after = [*lines[1:], ""]
    names = {line for b, line, a in zip(before, lines, after, strict=True) if not b and a and _is_name(line, style)}
    role = ""
    spoken: list[str] = []
    for b, line in zip(before, lines, strict=True):
        starts = not b and line in names
        if starts or SECTION.match(line):
            if role and spoken:
                yield role, spoken
            role, spoken = line.rstrip(".") if starts else "", []
        elif line and not (not b and HEADINGS.fullmatch(line.rstrip("."))):
            spoken.append(line)
    if role and spoken:
        yield role, spoken


def _body(text: str) -> list[str]:
    """Stripped lines from the first act or scene on."""
    lines = [line.strip() for line in text.split("\n")]
    start = next((i for i, line in enumerate(lines) if SECTION.match(line)), 0)
    return lines[start:]


def _is_name(line: str, style: re.Pattern[str]) -> bool:
    return (
        len(line) <= LONGEST_HEADER
        and style.fullmatch(line) is not None
        and SECTION.match(line) is None
        and HEADINGS.fullmatch(line.rstrip(".")) is None
    )
