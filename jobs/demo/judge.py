"""Judge answers: captions attribute by attribute, questions as a whole."""

from collections import Counter

from jobs.demo.language import read_caption

# Equal to no size, colour, shape or motion; "" is the size of shapes that grow.
_MISSING = ("missing", "missing", "missing", "missing")


class Accuracy:
    """Counts how many answers of each kind were asked for and right."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.right: Counter[str] = Counter()

    def add(self, kind: str, *, is_right: bool) -> None:
        """Count one answer."""
        self.asked[kind] += 1
        self.right[kind] += is_right

    def fraction(self, kind: str) -> float:
        """Return the fraction of right answers of a kind; 0 if none was asked for."""
        return round(self.right[kind] / max(1, self.asked[kind]), 4)

    def fractions(self) -> dict[str, float]:
        """Return all fractions by kind."""
        return {kind: self.fraction(kind) for kind in sorted(self.asked)}


def judge_caption(accuracy: Accuracy, right_caption: str, text: str) -> None:
    """Compare a caption with the right one, attribute by attribute.

    Shapes are compared by their place in the true caption; a missing shape is wrong.
    """
    truth, seen = read_caption(right_caption), read_caption(text)
    accuracy.add("count", is_right=len(seen.shapes) == len(truth.shapes))
    accuracy.add("background", is_right=seen.background == truth.background)
    accuracy.add("caption", is_right=text.strip() == right_caption)
    for number, right in enumerate(truth.shapes):
        stated = seen.shapes[number] if number < len(seen.shapes) else _MISSING
        for kind, one, other in zip(
            ("size", "colour", "shape", "motion"), stated, right, strict=True
        ):
            accuracy.add(kind, is_right=one == other)
    accuracy.add("event" if truth.event else "no_event", is_right=seen.event == truth.event)
    accuracy.add("text" if truth.text else "no_text", is_right=seen.text == truth.text)
