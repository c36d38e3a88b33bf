"""The pages that are made of the package itself: an API page for each public module or package."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keras_distill"
# What the docstrings of the public names refer to, on the page where they do.
REFERRED_TO = {
    "keras_distill": ["taps.list_taps"],
    "keras_distill.models": ["generations.Generations"],
}


def parsed(path):
    """The syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def public_names(path):
    """The names that a module offers: its `__all__`, or else its public functions and classes.

    Args:
        path: The module's file, of a package its `__init__.py`.
    """
    tree = parsed(path)
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    defined = (ast.FunctionDef, ast.ClassDef)
    names = [node.name for node in tree.body if isinstance(node, defined)]
    return [name for name in names if not name.startswith("_")]


def module_file(dotted):
    """The file of `keras_distill.losses`, or `None` where that is no module."""
    place = ROOT.joinpath(*dotted.split("."))
    paths = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in paths if path.is_file()), None)


def parts():
    """`{dotted module: its public names}`, the modules among them left out.

    First the package itself, then `models` and all modules that the package offers.
    """
    offered = public_names(PACKAGE / "__init__.py")
    modules = [name for name in offered if module_file(f"keras_distill.{name}")]
    found = {}
    for dotted in ["keras_distill", *(f"keras_distill.{name}" for name in ["models", *modules])]:
        names = public_names(module_file(dotted))
        if dotted == "keras_distill":
            names = [name for name in names if name not in modules]
        elif dotted == "keras_distill.models":
            names = [name for name in names if name not in offered]
        found[dotted] = names + REFERRED_TO.get(dotted, [])
    return found


def page_name(dotted):
    """The file of a module's page."""
    return f"api/{dotted.removeprefix('keras_distill').lstrip('.') or 'keras_distill'}.md"


def api_page(dotted, names):
    """The Markdown of a module's page: what it is for, then an entry a name."""
    sections = "\n\n".join(f"::: {dotted}.{name}" for name in names)
    about = ast.get_docstring(parsed(module_file(dotted)))
    if dotted == "keras_distill":
        about = about.splitlines()[0]
    return f"# {dotted}\n\n{about}\n\n{sections}\n"


def api_index(found):
    """The Markdown of the page that lists all names."""
    rows = ["# API", "", "Every public name, by the module that offers it.", ""]
    for dotted, names in found.items():
        about = ast.get_docstring(parsed(module_file(dotted))).splitlines()[0]
        links = ", ".join(f"[`{name}`][{dotted}.{name}]" for name in names)
        page = page_name(dotted).removeprefix("api/")
        rows += [f"## [{dotted}]({page})", "", about, "", links, ""]
    return "\n".join(rows)


def title_of(page):
    """The first heading of a page of `docs`."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            return line.removeprefix("# ")
    raise ValueError(f"Expected a heading that begins with `# `. Received: page={page}.")


def method_pages():
    """The pages of the methods, in the order of the table on `methods/index.md`."""
    folder = ROOT / "docs" / "methods"
    index = (folder / "index.md").read_text(encoding="utf-8")
    pages = [page for page in folder.glob("*.md") if page.name != "index.md"]
    return sorted(pages, key=lambda page: (index.find(f"({page.name})"), page.name))


def on_files(files, config, **_):
    """Adds the pages of the API, and them and those of the methods to the menu (a hook)."""
    from mkdocs.structure.files import File

    found = parts()
    pages = {"api/index.md": api_index(found)}
    pages |= {page_name(dotted): api_page(dotted, names) for dotted, names in found.items()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    methods = [{title_of(page): f"methods/{page.name}"} for page in method_pages()]
    api = [{dotted: page_name(dotted)} for dotted in found]
    config.nav = [
        *config.nav,
        {"Methods": ["methods/index.md", *methods]},
        {"API": ["api/index.md", *api]},
    ]
    return files
