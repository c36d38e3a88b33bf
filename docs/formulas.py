"""Formulas as MathML, written while the pages are built: no script draws them in the browser."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def as_mathml(match):
    """The MathML of one formula that `pymdownx.arithmatex` has marked."""
    display = "block" if match["tag"] == "div" else "inline"
    mathml = convert(html.unescape(match["latex"]).strip(), display=display)
    return f'<div class="formula">{mathml}</div>' if display == "block" else mathml


def on_page_content(content, **_):
    """Draws the formulas of a page (a hook of MkDocs)."""
    return FORMULA.sub(as_mathml, content)
