"""Text of others on a terminal."""


def printable(text: str) -> str:
    """Return a line without control codes for the terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
