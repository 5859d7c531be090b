"""Pages of the site that are generated, and links between files of the repository as links between pages (for mkdocs).

Generated are the reference of commands (from their own --help), of the options of parts (from the catalog), of Python
(names from the stubs, text from the docstrings) and of files (from the docstrings of the modules that write them), and
what lies elsewhere in the repository: cards of data sets, examples, CONTRIBUTING, SECURITY, CHANGELOG.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tripletmas"
_INDEX = ("build", "add", "remove", "info", "refresh", "push", "pull")  # what `tripletmas index` can be followed by
_PARTS = {"strategy": "Strategies", "loss": "Losses", "model": "Models", "data": "Data"}
_FILES = {  # module -> what it writes
    "runs/directory.py": "A run",
    "index/file.py": "An index",
    "protection/file.py": "A protection",
    "models/exported.py": "An exported model",
}
_NO_TAG = re.compile(r"<(?=[a-zA-Z])(?!img |https?:)")
_CODE, _OPTION = re.compile(r"<code>[^<]*</code>"), re.compile(r"(?<![\w-])--?\w[\w.-]*")
_LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    sys.path.insert(0, str(ROOT))
    for path, text in {**dict(_elsewhere()), **dict(_reference())}.items():
        level = (
            InclusionLevel.NOT_IN_NAV if path.startswith("datasets/") else InclusionLevel.INCLUDED
        )  # datasets.md lists
        files.append(File.generated(config, path, content=text, inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to the pages that they have become; other files are named."""
    source = _sources().get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {path: uri for uri, path in _sources().items()}

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        uri = pages.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if uri is None and not (ROOT / target).exists():
            return match[0]
        if uri is None:  # a script, a test: it has no page
            return f'](# "{target} in the repository")'
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"{match[1]}{posixpath.relpath(uri, start)}{match[3] or ''}{match[4]}"

    return _without_tags(_LINK.sub(link, markdown))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """What the theme leaves out: the keyboard reaches code and tables that scroll, and the search has a name (WCAG).

    The words of an option stay in one line: browsers break after the hyphens before them.
    """
    output = _CODE.sub(lambda code: _OPTION.sub(r'<span class="option">\g<0></span>', code[0]), output)
    output = re.sub(r"<pre>(?=(?:<span></span>)?<code\b)", '<pre tabindex="0">', output)
    wide = '<div class="wide" tabindex="0" role="group" aria-label="Table">'
    output = re.sub(r"<table>.*?</table>", lambda table: f"{wide}{table[0]}</div>", output, flags=re.S)
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def _without_tags(markdown: str) -> str:
    """<subject, predicate, object> is no tag of HTML: outside of code it is shown as it stands."""
    pieces = re.split(r"(^```.*?^```|`[^`\n]*`)", markdown, flags=re.M | re.S)
    return "".join(each if number % 2 else _NO_TAG.sub("&lt;", each) for number, each in enumerate(pieces))


def _sources() -> dict[str, str]:
    """Page -> the file of the repository that it is."""
    cards = {f"datasets/{path.parent.name}.md": f"datasets/{path.parent.name}/README.md" for path in _cards()}
    whole = {f"{name.lower()}.md": f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG")}
    return {**cards, **whole, "index.md": "README.md", "examples.md": "examples"}


def _cards() -> list[Path]:
    return sorted((ROOT / "datasets").glob("*/README.md"))


def _elsewhere() -> Iterator[tuple[str, str]]:
    for page, path in _sources().items():
        if (ROOT / path).is_file():
            yield page, (ROOT / path).read_text(encoding="utf-8").replace('src="docs/', 'src="')
    cards = "\n".join(f"- [{path.parent.name}](datasets/{path.parent.name}.md)" for path in _cards())
    yield "datasets.md", f"# Cards of data sets\n\nOf each what it is, how it is read, and pitfalls.\n\n{cards}"
    programs = "".join(map(_example, _examples()))
    yield "examples.md", f"# Programs to copy from\n\nIn `examples/`; each is run by a test.\n{programs}"


def _examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("*.py"))


def _example(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return f"\n## {path.name}\n\n```python\n{text.partition(chr(10))[2] if text.startswith('#!') else text}```\n"


def _reference() -> Iterator[tuple[str, str]]:
    yield "reference/commands.md", "# Commands\n" + "".join(_commands())
    yield "reference/parts.md", "# Options of parts\n" + "".join(_parts())
    yield "reference/files.md", "# Files\n" + "".join(_files())
    for package in sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        if names := _public(package):
            page = f"reference/{package}{'_' if package == 'index' else ''}.md"  # index.md is a folder's own page
            says = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8")))
            sections = "".join(f"\n::: {name}\n" for name in names)
            yield page, f"# tripletmas.{package}\n\n{says}\n{sections}"


def _public(package: str) -> list[str]:
    """The dotted names of what a package, or the top of all, gives to users, from its own modules."""
    if package == "integrations":
        return [name for path in sorted((PACKAGE / package).glob("[!_]*.py")) for name in _defined(path)]
    within = _imported(PACKAGE / package / "__init__.pyi", f"tripletmas.{package}.")
    found = dict.fromkeys([*within, *_imported(PACKAGE / "__init__.pyi", "tripletmas.")])
    return [name for name in found if name.startswith(f"tripletmas.{package}.")]


def _defined(path: Path) -> list[str]:
    """The dotted names of the public classes and functions of a module of the integrations."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    names = [node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [f"tripletmas.integrations.{path.stem}.{name}" for name in names if not name.startswith("_")]


def _imported(stub: Path, base: str) -> list[str]:
    """The dotted names that a stub hands on."""
    nodes = ast.parse(stub.read_text(encoding="utf-8")).body if stub.exists() else []
    from_own = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module and node.level == 1]
    return [f"{base}{node.module}.{each.name}" for node in from_own for each in node.names]


def _commands() -> Iterator[str]:
    """A section for each command: what it says of itself."""
    from tripletmas.cli.main import COMMANDS, main

    def said(*words: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            main(list(words))
        return out.getvalue().rstrip()

    os.environ["COLUMNS"] = "92"
    yield f"\n```text\n{said('--help')}\n```\n"
    for name in COMMANDS:
        yield f"\n## {name}\n\n```text\n{said(name, '--help')}\n```\n"
        for part in _INDEX if name == "index" else ():
            yield f"\n### index {part}\n\n```text\n{said('index', part, '--help')}\n```\n"


def _parts() -> Iterator[str]:
    """A section for each kind of part, a table for each part that has options."""
    from tripletmas.runs import catalog

    for part, title in _PARTS.items():
        yield f"\n## {title}\n"
        for name in catalog.names(part) if part != "model" else ():
            rows = [
                f"| `{key}` | {_cell(option.help)} | `{option.default}` |"
                for key, option in catalog.options(part, name).items()
            ]
            head = "\n| option | | default |\n| --- | --- | --- |\n" if rows else "\nNo options.\n"
            yield f"\n### {name} {{ #{part}-{name} }}\n{head}" + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def _files() -> Iterator[str]:
    yield "\nWhat the modules that write them say. All bear checksums; `tripletmas doctor` compares them.\n"
    for module, title in _FILES.items():
        text = ast.get_docstring(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
        yield f"\n## {title}\n\n```text\n{text}\n```\n"
