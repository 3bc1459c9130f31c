"""Equations as MathML, which browsers set by themselves.

Plain text is cut into letters, numbers and signs; what is built is a Math, a piece of markup.
"""

from __future__ import annotations

import re
from html import escape


class Math(str):
    """A piece of MathML."""


Part = str  # Math is taken as it is, any other text is cut into tokens


def _tokens(text: str) -> str:
    out = []
    for token in re.findall(r"[^\W\d_]|∂|\d+(?:\.\d+)?|\S", text.replace("-", "−")):
        if token[0].isdigit():
            out.append(f"<mn>{token}</mn>")
        elif token.isalpha() or token == "∂":
            out.append(f"<mi>{token}</mi>")
        elif token in "[]()":
            out.append(f'<mo stretchy="false">{token}</mo>')
        else:
            out.append(f"<mo>{escape(token)}</mo>")
    return "".join(out)


def row(*parts: Part) -> Math:
    """Parts beside each other."""
    inner = "".join(part if isinstance(part, Math) else _tokens(part) for part in parts)
    return Math(f"<mrow>{inner}</mrow>")


def word(text: str) -> Math:
    """An upright word, or a name such as max."""
    return Math(f"<mtext>{escape(text.replace(' ', chr(160)))}</mtext>")


def sub(base: Part, index: Part) -> Math:
    """base with a subscript."""
    return Math(f"<msub>{row(base)}{row(index)}</msub>")


def power(base: Part, exponent: Part) -> Math:
    """base with a superscript."""
    return Math(f"<msup>{row(base)}{row(exponent)}</msup>")


def tilde(base: Part) -> Math:
    """base under a tilde: a flipped filter."""
    return Math(f'<mover accent="true">{row(base)}<mo stretchy="false">~</mo></mover>')


def prime(base: Part) -> Math:
    """The derivative base′."""
    return Math(f"<msup>{row(base)}<mo>′</mo></msup>")


def fraction(top: Part, bottom: Part) -> Math:
    """top / bottom."""
    return Math(f"<mfrac>{row(top)}{row(bottom)}</mfrac>")


def partial(by: Part) -> Math:
    """∂L/∂by."""
    return fraction("∂L", row("∂", by))


def total(*under: Part) -> Math:
    """A sum sign; each line of what runs stands under it."""
    sign = "<mo>∑</mo>"
    for i, line in enumerate(under):  # some fonts set lines so tight that they touch
        height = "1.25em" if i else "0.95em"
        sign = f'<munder>{sign}<mpadded height="{height}">{row(line)}</mpadded></munder>'
    return Math(sign)


def equation(*pieces: Math) -> str:
    """A displayed equation; a narrow screen may break it between two pieces."""
    inner = " ".join(f'<math displaystyle="true">{piece}</math>' for piece in pieces)
    return f'<p class="equation">{inner}</p>'


def inline(*parts: Part) -> str:
    """An expression within a sentence."""
    return f"<math>{row(*parts)}</math>"
