"""Docstrings as pages show them: deviations, sessions and names of classes set off and linked."""

import ast
import pathlib
import re

import griffe

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "keras_distill"
DEVIATION = re.compile(r"^( *)(Deviation(?: \(\w+\))?):\s+(?=\S)")
CODE = re.compile(r"`([A-Za-z_]+)`")


def listed(package):
    """The `__all__` of a package of the library, `""` for the library's own."""
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    lists = [n for n in tree.body if isinstance(n, ast.Assign) and "__all__" in ast.unparse(n)]
    return ast.literal_eval(lists[0].value)


LINKS = {name: f"keras_distill.losses.{name}" for name in listed("losses")}
LINKS |= {name: f"keras_distill.{name}" for name in listed("") if name[0].isupper()}
LINKS["Generations"] = "keras_distill.models.generations.Generations"


def with_paragraphs(text):
    """A docstring's text with each `Deviation: ...` set off as a paragraph of its own.

    Args:
        text: The docstring, without the indentation of its code.
    """
    lines, indentation = [], None
    for line in text.splitlines():
        found = DEVIATION.match(line)
        if found:
            indentation = found[1]
            line = f"{indentation}**{found[2]}:** {line[found.end() :]}"
            lines.append("")
        elif not line.strip() or len(line) - len(line.lstrip()) < len(indentation or ""):
            indentation = None
        elif indentation is not None:
            line = indentation + line.lstrip()
        lines.append(line)
    return "\n".join(lines)


def with_sessions(text):
    """A docstring's text with each `>>>` session in a fence of its own.

    Args:
        text: The docstring, without the indentation of its code.
    """
    return re.sub(r"(?m)^( *)>>> (?:.*\n?)(?:\1\S.*\n?)*", _fenced, text)


def _fenced(match):
    code = match[0].rstrip("\n")
    return f"{match[1]}```pycon\n{code}\n{match[1]}```\n"


def with_links(text, own_name):
    """A docstring's text with links for the names of classes, and for losses that it says to see.

    Args:
        text: The docstring.
        own_name: What it is the docstring of, which is not linked.
    """

    def link(match):
        name = match[1]
        said = text[: match.start()].endswith(("see ", "See "))
        if name == own_name or name not in LINKS or not (said or name[0].isupper()):
            return match[0]
        return f"[{match[0]}][{LINKS[name]}]"

    return CODE.sub(link, text)


class Docstrings(griffe.Extension):
    """Changes each docstring that is collected, for the pages alone (a hook of Griffe)."""

    def on_object(self, *, obj, **_):
        """Changes the docstring of an object, where it has one."""
        if obj.docstring:
            text = with_sessions(with_paragraphs(obj.docstring.value))
            obj.docstring.value = with_links(text, obj.name)
