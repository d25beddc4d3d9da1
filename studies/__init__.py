"""Research questions, each a script, a figure and an answer in docs/."""
