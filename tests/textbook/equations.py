"""Where each equation of the textbook is implemented and tested: from the sources to a page.

    make equations     # rewrites jaxrnn/textbook/EQUATIONS.md

The module docstrings of the textbook list the equations. The functions that implement one, there
and in the engine, name its id in their docstrings; the test of one is called by its id.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = "jaxrnn/textbook/EQUATIONS.md"
ERRATA = "jaxrnn/textbook/README.md"
ENGINE = ("jaxrnn/cells/*.py", "jaxrnn/bptt.py", "jaxrnn/loops.py", "jaxrnn/readout.py")

# the first part of an id, in the order of the page
KINDS = ("rnn", "lstm", "step", "net")
ID = rf"\b(?:{'|'.join(KINDS)})-\d+\b"
LISTED = re.compile(rf"^    ({ID}) +(\+ +)?(\S.*)$", re.MULTILINE)
TESTED = re.compile(rf"test_({'|'.join(KINDS)})_(\d+)_")
TESTS = "tests/textbook/test_textbook*.py"
# marks and calls of pytest by which a test may pass without having run
SKIPS = {"skip", "skipif", "xfail", "importorskip"}


class Equation(NamedTuple):
    text: str
    document: str
    added: bool


class Place(NamedTuple):
    """A function, in a file relative to the root."""

    function: str
    file: str


class Trace(NamedTuple):
    """The equations by id, and the places of each: who implements it twice, and who checks it.

    ``modules`` are the modules that mention one, which implements nothing; ``skipped`` the
    functions of the tests that may be skipped, under '' what a module does to all of its own.
    """

    equations: dict[str, Equation]
    textbook: dict[str, list[Place]]
    engine: dict[str, list[Place]]
    tests: dict[str, list[Place]]
    modules: dict[str, list[Place]]
    skipped: list[Place]


def documented(root: Path, *patterns: str) -> Iterator[tuple[Place, str]]:
    """Every function of these files with its docstring; the module's own under the name ''."""
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        file = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text())
        yield Place("", file), ast.get_docstring(tree, clean=False) or ""
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield Place(node.name, file), ast.get_docstring(node) or ""


def may_be_skipped(root: Path, pattern: str) -> Iterator[Place]:
    """The top-level functions of these files that pytest may skip, or whose failure it expects."""
    for path in sorted(root.glob(pattern)):
        for node in ast.parse(path.read_text()).body:
            names = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            if isinstance(node, ast.ImportFrom):
                names |= {alias.name for alias in node.names}
            if names & SKIPS:
                function = node.name if isinstance(node, ast.FunctionDef) else ""
                yield Place(function, path.relative_to(root).as_posix())


def read(root: Path = ROOT) -> Trace:
    """The links as the sources hold them."""
    trace = Trace({}, {}, {}, {}, {}, list(may_be_skipped(root, TESTS)))
    for place, doc in documented(root, "jaxrnn/textbook/*.py"):
        if not place.function:
            title = re.search(r'document\s+"([^"]+)"', doc)
            for name, added, text in LISTED.findall(doc):
                assert title, f"{place.file} lists {name} and names no document"
                trace.equations[name] = Equation(text, title[1], bool(added))
        links = trace.textbook if place.function else trace.modules
        for name in re.findall(ID, doc):
            links.setdefault(name, []).append(place)
    for place, doc in documented(root, *ENGINE):
        links = trace.engine if place.function else trace.modules
        for name in re.findall(ID, doc):
            links.setdefault(name, []).append(place)
    for place, _ in documented(root, TESTS):
        if found := TESTED.match(place.function):
            trace.tests.setdefault(f"{found[1]}-{found[2]}", []).append(place)
    order = sorted(trace.equations, key=lambda name: KINDS.index(name.partition("-")[0]))
    return trace._replace(equations={name: trace.equations[name] for name in order})


def broken(trace: Trace) -> list[str]:
    """What is missing, what names an equation that is not listed, and tests that may not run."""
    links = {
        "function of the textbook": trace.textbook,
        "function of the engine": trace.engine,
        "test": trace.tests,
    }
    missing = [
        f"{name} has no {kind}"
        for kind, places in links.items()
        for name in trace.equations
        if name not in places
    ]
    unlisted = [
        f"{place.file}: {place.function or 'the module'} names {name}, which is not listed"
        for places in (*links.values(), trace.modules)
        for name in places
        if name not in trace.equations
        for place in dict.fromkeys(places[name])
    ]
    skipped = [
        f"{place.file}: {place.function or 'the module'} may be skipped" for place in trace.skipped
    ]
    return missing + unlisted + skipped


def page(trace: Trace) -> str:
    """EQUATIONS.md."""
    lines = [
        "# The equations of the textbook",
        "",
        "Generated by `make equations`; do not edit. For each equation of the",
        "documents: where the textbook implements it, what does the same work in the engine, and",
        "its test. Those marked + are not in the document. Each module's docstring explains its",
        "notation. The GRU is in none of the documents.",
    ]
    document = None
    for name, equation in trace.equations.items():
        if equation.document != document:
            document = equation.document
            lines += ["", f"## {document}", "", "| id | equation | textbook | engine | test |"]
            lines += ["|---|---|---|---|---|"]
        cells = [name + (" +" if equation.added else ""), f"`{equation.text}`"]
        cells += [_links(links[name]) for links in (trace.textbook, trace.engine, trace.tests)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _links(places: list[Place]) -> str:
    return ", ".join(
        f"[`{place.function}`]({os.path.relpath(place.file, os.path.dirname(PAGE))})"
        for place in dict.fromkeys(places)
    )


class Erratum(NamedTuple):
    """A row of the table in README.md."""

    id: str
    document: str
    place: str
    says: str
    right: str
    test: str


def errata(root: Path = ROOT) -> list[Erratum]:
    """The rows of the errata table."""
    rows = re.findall(r"^\| (E\d+ .*) \|$", (root / ERRATA).read_text(), re.MULTILINE)
    return [Erratum(*(cell.strip() for cell in row.split(" | "))) for row in rows]


if __name__ == "__main__":
    trace = read()
    for problem in broken(trace):
        print(problem)
    (ROOT / PAGE).write_text(page(trace))
