"""Word lists of the torture: pieces of text, values and names made to do harm."""

from __future__ import annotations

import math
from typing import Any

TOKENS = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b"  ", b",", b";", b":", b'"', b"'", b"{", b"}", b"[",
    b"]", b"&a ", b"*a", b"!!python/object:os.system ", b"!!bool x", b"!!map [a]", b"<<: ", b"# ", b"---\n",
    b"\\u0000", b"\\ud800", b"\x1b[31m", b"\xe2\x80\x8b", b"\xe2\x80\xae", b"1e999", b"-1", b"NaN", b"null", b"true",
    b"9" * 400, b"{}", b"|", b"source", b"dest", b"task", b"templates", b"$\\frac{a$", b"..", b"/etc/passwd",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 64, 100_000, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-300, 1e308, math.nan, math.inf, -math.inf,
    True, False, None, "", "0", "1", "true", "nonsense", "linear", "a" * 10_000, "\x1b[31m", "\u200b", "\ud800", "..",
    [], {}, [1], [1, "x"], ["a", "b"], {"a": 1}, [[1]], [None],
)  # fmt: skip
KINDS = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", "", 7, None)

NAMES = (
    "<script>alert(1)</script>", "</title><img src=x onerror=alert(1)>", "&lt;b&gt;", '" onmouseover="x', "{{7*7}}",
    "red\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "bell\x07", "carriage\rreturn", "line\nfeed", "tab\tstop",
    "right\u202eleft", "zero\u200bwidth", "\u200b", "\ufeffbom", "nul\0byte", "\ud800", "a\u0301", "á", "猫", "👩‍👩‍👧",
    "../../etc/passwd", "/etc/passwd", "..", "con", "a/b", "a\\b", "%s%s%n", "$(touch pwned)", "`touch pwned`",
    "'; DROP TABLE x; --", r"$\frac{a$", "$", "$$", "{}", "{0}", "{name}", "%(x)s", "\\", "|", "a|b", "-", "--config",
    "a" * 10_000, "word " * 2_000, "[EOS]", "<|endoftext|>", "<|startoftext|> dog", "0", "null", "True", "1e5",
)  # fmt: skip
TEXTS = (
    "0", "1", "2", "7", "-1", "1e3", "0.5", "1e400", "nan", "inf", "-inf", "0x10", "1_0", "True", "true", "False",
    "None", "()", "(1,)", "(1, 2)", "[1, 2]", "(1, 'a')", "{1, 2}", "{}", "{'a': 1}", "b'x'", "'x'", "x", "", " ",
    "1+1", "1+" * 5000 + "1", "(" * 300, "[" * 100_000, "-" * 3000 + "1", "9" * 5000, "a" * 10_000, "\\x1b[31m",
    "\x1b[31m", "\u202e", "猫", "lambda: 1", "__import__('os').system('touch pwned')", "f'{1}'", "...", "1j", "1,2",
    "host", "device", "memit", "released", "ridge", "nullspace", "('dog',)", "dog", "great white shark", "$x$",
)  # fmt: skip
STRANGE = ("config", "config.", "config.x", "config.run.x", "config.run.save_every.x", "config.stage_two.layers[0]",
         "config.stage_two.layers[99]", "config.__class__", "config.run.__dict__", "config.stage_one[0]")  # fmt: skip
