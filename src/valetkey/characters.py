"""Characters that must not reach a terminal. Next to nothing is imported here: every command needs it."""

__all__ = ["UNSEEN"]

# For a character class, beside those below U+0020: what moves a cursor, colours a screen or turns the direction of
# writing, and half a character, which JSON can name and nothing can write.
UNSEEN = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
