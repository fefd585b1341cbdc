"""jusText's second step: what a paragraph of a page is, by the paragraphs around it (Pomikálek 2011, section 3.3).

The library looks for each paragraph's neighbours anew, which takes a minute for a page with 20,000 short ones; this takes two walks.
"""

from collections.abc import Iterable, Sequence

from justext.core import MAX_HEADING_DISTANCE_DEFAULT as MAX_DISTANCE  # characters between a heading and a good paragraph


def revise(paragraphs: Sequence) -> None:
    """Sets `class_type` of every paragraph to good or bad by their `cf_class`, as `justext.core` does."""
    for paragraph in paragraphs:
        paragraph.class_type = paragraph.cf_class
    around = zip(*_neighbours(paragraphs, ("good", "bad")), *_neighbours(paragraphs, ("good", "bad", "neargood")), strict=True)
    for paragraph, new in [*zip(paragraphs, (_of_short(*classes) for classes in around), strict=True)]:
        if paragraph.class_type == "short":
            paragraph.class_type = new
    before = "bad"
    for paragraph, after in zip(paragraphs, _neighbours(paragraphs, ("good", "bad"))[1], strict=True):
        if paragraph.class_type == "neargood":
            paragraph.class_type = "bad" if before == after == "bad" else "good"
        before = paragraph.class_type
    for place, paragraph in enumerate(paragraphs):
        if paragraph.heading and paragraph.class_type == "bad" != paragraph.cf_class and _is_near_good(paragraphs, place):
            paragraph.class_type = "good"


def _of_short(before: str, after: str, near_before: str, near_after: str) -> str:
    """What a short paragraph is between such neighbours; `near` are those that may be near good."""
    if before == after:
        return before
    is_near = (before == "bad" and near_before == "neargood") or (after == "bad" and near_after == "neargood")
    return "good" if is_near else "bad"


def _neighbours(paragraphs: Sequence, classes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """For each paragraph, the nearest of these classes before it and behind it; bad where there is none."""
    return _last_seen(paragraphs, classes), _last_seen(reversed(paragraphs), classes)[::-1]


def _last_seen(paragraphs: Iterable, classes: tuple[str, ...]) -> list[str]:
    found, last = [], "bad"
    for paragraph in paragraphs:
        found.append(last)
        last = paragraph.class_type if paragraph.class_type in classes else last
    return found


def _is_near_good(paragraphs: Sequence, place: int) -> bool:
    distance = 0
    for paragraph in paragraphs[place + 1 : place + 1 + MAX_DISTANCE]:
        if distance > MAX_DISTANCE:
            return False
        if paragraph.class_type == "good":
            return True
        distance += len(paragraph.text)
    return False
