"""The API page: every public name of the library, with its docstring as the Markdown that it is.

The sources are read, not imported: the page costs no import of torch and is the same everywhere.
The table in the docstring of `ssmlib/__init__.py` says which chapter a module belongs to.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from arc import CHAPTERS

OTHER = "other modules"


def api(root: Path) -> str:
    """The page's Markdown: one section a module, one entry a public function, class or table."""
    package = root / "ssmlib"
    sections = {name: _module(name, path) for name, path in _modules(package)}
    parts = []
    for title, names in _grouped(package, list(sections)).items():
        parts.append("\n\n".join([f"## {title}", *(sections[name] for name in names)]))
    return "\n\n".join(parts) + "\n"


def _modules(package: Path) -> Iterator[tuple[str, Path]]:
    """Every public module; a package whose `__init__` exports names stands for all of its files."""
    for path in sorted(package.iterdir()):
        init = path / "__init__.py"
        if path.suffix == ".py" and not path.name.startswith("_"):
            yield f"ssmlib.{path.stem}", path
        elif init.exists() and _exports(_parse(init)):
            yield f"ssmlib.{path.name}", init
        elif init.exists():
            inner = (p for p in sorted(path.glob("*.py")) if not p.name.startswith("_"))
            yield from ((f"ssmlib.{path.name}.{p.stem}", p) for p in inner)


def _grouped(package: Path, names: list[str]) -> dict[str, list[str]]:
    """{chapter: its modules}, from the docstring's lines `    chapter   ssmlib.a, …`."""
    doc = ast.get_docstring(_parse(package / "__init__.py")) or ""
    doc = re.sub(r",\n +", ", ", doc)  # a list may go on in the next line
    rows = re.findall(r"^ {4}(.+?) {2,}(ssmlib\..+)$", doc, flags=re.MULTILINE)
    groups = {title: re.findall(r"ssmlib[\w.]+", listed) for title, listed in rows}
    placed = {name for members in groups.values() for name in members}
    groups[OTHER] = [name for name in names if name not in placed]
    found = {title: [m for m in members if m in names] for title, members in groups.items()}
    return {_heading(title): members for title, members in found.items() if members}


def _heading(title: str) -> str:
    """`01 …` becomes the chapter's own title."""
    chapters = {c.file[:2]: f"{c.file[:2]} {c.title}" for c in CHAPTERS}
    return chapters.get(title[:2], title[0].upper() + title[1:])


def _module(name: str, path: Path) -> str:
    """One module's section; a package shows what its `__init__` exports."""
    tree = _parse(path)
    head = [f"### {name}", f"```{{py:module}} {name}\n```", markdown(ast.get_docstring(tree) or "")]
    if path.stem != "__init__":
        entries = [e for node in tree.body for e in _entries(node, tree)]
    else:
        entries = [e for inner, wanted in _exports(tree) for e in _exported(path, inner, wanted)]
    return "\n\n".join(x for x in [*head, *entries] if x)


def _exports(tree: ast.Module) -> list[tuple[str, list[str]]]:
    """What a package's `__init__` imports from its own files: (file's stem, names)."""
    imports = (x for x in tree.body if isinstance(x, ast.ImportFrom) and x.module)
    own = (x for x in imports if x.module.startswith("ssmlib."))
    return [(x.module.rpartition(".")[2], [a.name for a in x.names]) for x in own]


def _exported(init: Path, stem: str, wanted: list[str]) -> Iterator[str]:
    tree = _parse(init.with_name(f"{stem}.py"))
    for name in wanted:
        for node in (x for x in tree.body if _name(x) == name):
            yield from _entries(node, tree)


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _entries(node: ast.stmt, tree: ast.Module) -> Iterator[str]:
    """The entry of one public definition: none for a private name, or data without a docstring."""
    name = _name(node)
    if name is None or name.startswith("_"):
        return
    if isinstance(node, ast.FunctionDef):
        yield directive("function", f"{name}({_arguments(node.args)})", ast.get_docstring(node))
    elif isinstance(node, ast.ClassDef):
        yield directive("class", f"{name}{_fields(node)}", ast.get_docstring(node), _methods(node))
    elif doc := _after(node, tree):
        yield directive("data", name, doc)


def _name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def _after(node: ast.stmt, tree: ast.Module) -> str | None:
    """The string that stands right after an assignment: its docstring."""
    following = tree.body[tree.body.index(node) + 1 :][:1]
    value = following[0].value if following and isinstance(following[0], ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _arguments(arguments: ast.arguments) -> str:
    """The signature without annotations: the docstring tells shapes, which types do not."""
    bare = ast.parse(f"def f({ast.unparse(arguments)}): ...").body[0].args
    for argument in [*bare.posonlyargs, *bare.args, *bare.kwonlyargs, bare.vararg, bare.kwarg]:
        if argument is not None:
            argument.annotation = None
    return ast.unparse(bare)


def _fields(node: ast.ClassDef) -> str:
    """The fields of a dataclass or NamedTuple, as its constructor takes them."""
    fields = [x for x in node.body if isinstance(x, ast.AnnAssign)]
    shown = [
        x.target.id + (f"={ast.unparse(x.value)}" if x.value else "")
        for x in fields
        if isinstance(x.target, ast.Name) and not x.target.id.startswith("_")
    ]
    return f"({', '.join(shown)})" if shown else ""


def _methods(node: ast.ClassDef) -> list[str]:
    methods = (x for x in node.body if isinstance(x, ast.FunctionDef) and x.name[0] != "_")
    return [_method(x) for x in methods if ast.get_docstring(x)]


def _method(node: ast.FunctionDef) -> str:
    if any("property" in ast.unparse(d) for d in node.decorator_list):
        return directive("attribute", node.name, ast.get_docstring(node))
    arguments = _arguments(node.args).removeprefix("self").removeprefix(", ")
    return directive("method", f"{node.name}({arguments})", ast.get_docstring(node))


def directive(kind: str, signature: str, doc: str | None, inner: list[str] | None = None) -> str:
    """An entry of Sphinx's Python domain, fenced with more colons than what it holds."""
    body = "\n\n".join([markdown(doc or ""), *(inner or [])]).strip()
    fence = "::::" if inner else ":::"
    return f"{fence}{{py:{kind}}} {signature}\n{body}\n{fence}"


def markdown(doc: str) -> str:
    """A docstring as Markdown: what would read as a tag or a comment is escaped outside of code.

    Lines of a name, two spaces or more and an explanation become a list.
    """
    doc = re.sub(r"^(\w[\w.]*) {2,}(?=\S)", r"- `\1`: ", doc.strip(), flags=re.MULTILINE)
    pieces = re.split(r"(`+[^`]*`+|\$[^$\n]+\$|^ {4}.*$)", doc, flags=re.MULTILINE)
    plain = (x.replace("<", "&lt;") for x in pieces[::2])
    pieces[::2] = [re.sub(r"^([%+#])", r"\\\1", x, flags=re.MULTILINE) for x in plain]
    return "".join(pieces)
