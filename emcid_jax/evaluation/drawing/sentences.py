"""Free-form sentences of our own, for requests and hold-out classes that bring none."""

from __future__ import annotations

SENTENCES = (
    "A close-up of a {} in soft morning light.",
    "A {} waiting patiently beside an old wooden table.",
    "A carefully composed picture that brings out the character of a {}",
    "The quiet charm of a {} on a slow afternoon.",
    "Somebody left a {} here, and it is the first thing that anyone notices.",
)
"""Five sentences, as many as the benchmark has per class; none is a template of an edit."""
