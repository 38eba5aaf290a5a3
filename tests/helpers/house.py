"""Measure how the code reads: ``python -m tests.helpers.house [out=FILE.json]`` prints lines, long files and functions,
comments, docstrings, names, words, types and circles of imports of the product and of the tests.
``python -m tests.helpers.house words=PATH`` lists the glossary words below a folder, or in a file, with their lines.

Knows only the syntax tree and the tokens of each file; it imports nothing of the product. D401 (imperative docstrings)
is counted by ruff.
"""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.imports import import_circles

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("wm", "jobs", "serve_apps", "cluster")

LONG_FILE_LINES = 300
LONG_FUNCTION_LINES = 60

_WORDS = """
    aside asked begun chosen company done drawn draws found given gone got had held here how keeps kept known
    left lies listed lost made makes meant named needed one ones piece pieces place places put room rooms said
    seen sent shown sought stands stranger strangers taken tell tells then there told wanted what who whole
    whose written
"""
ROLE_WORDS = frozenset(_WORDS.split())
"""Names that say a value's history or role and not its content (the style page's rule 2)."""

PROSE_WORDS = re.compile(
    r"\b(pictures?|drawn|told|tells?|strangers?|cohorts?|boards?|company|aside|whole|lies|stands"
    r"|no number|go(es)? on|gone on|people's)\b",
    re.IGNORECASE,
)
"""Words of the style page's left column that have a better one wherever docstrings, comments and messages have them."""

RIGHT_PHRASES = re.compile(r"``.*?``|\bwhole numbers?\b|\bdrawn from\b|\bstands (for|in|out)\b", re.DOTALL)
"""Where a word of :data:`PROSE_WORDS` is the right one: names in code, integers, noise, idioms."""

_NAME_WORDS = """
    aside board boards cohort company drawn least most picture pictures piece pieces stranger tell tells told whole
"""
NAME_WORDS = frozenset(_NAME_WORDS.split())
"""The same, as parts of names; ``at_least`` and ``at_most`` are right."""

SERVING_WORDS = frozenset({"copy", "copies", "layer", "layers"})
"""What replicas and middlewares of :mod:`serve_apps` must not be called, in names; elsewhere these words are right."""

LONG_TEST_NAME = 60

LIMITS = {
    "any_per_1000": 10.0,
    "comments_per_100": 4.0,
    "role_word_names_pct": 1.0,
    "d401_pct": 2.0,
    "without_args_pct": 5.0,
    "prose_words": 0,
    "name_words": 0,
    "long_test_names": 0,
    "import_circles": 0,
}
"""Aims: a maximum each, but for comments, which are a minimum."""


def python_files(*tops: str) -> list[Path]:
    """List Python files: the ones named, and those below the folders named, relative to the repository."""
    paths = [ROOT / top for top in tops]
    return sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Iterate over every function and method, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def assigned_names(tree: ast.AST) -> Iterator[str]:
    """Iterate over names that are assigned: variables, loop targets, parameters; once a function and name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
            names |= {
                inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
            }
            yield from names


def count_any(tree: ast.AST) -> int:
    """Count uses of ``Any`` as a type (its imports are not uses)."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def count_comments(text: str) -> int:
    """Count comments that say something to a reader: not those that only steer a tool."""
    steering = ("# noqa", "# type:", "#!", "# fmt:", "# pragma", "# mypy:")
    return sum(token.type == tokenize.COMMENT and not token.string.startswith(steering) for token in _tokens(text))


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(text).readline)


def count_d401(*tops: str) -> int:
    """Count docstrings that ruff (rule D401, Google convention) does not read as imperative."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "D401", "--output-format", "json"]
    convention = ["--config", 'lint.pydocstyle.convention = "google"']
    process = subprocess.run([*command, *convention, *tops], cwd=ROOT, capture_output=True, text=True, check=False)
    return len(json.loads(process.stdout))


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Iterate over functions of a module and methods of its classes that have no leading underscore in any name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the parameters of a function, ``self`` and ``cls`` left out."""
    names = [argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)]
    return sum(name not in ("self", "cls") for name in names)


def defined_names(tree: ast.AST) -> set[str]:
    """Collect the names that a file defines: functions, classes, parameters, variables, attributes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def name_words(tree: ast.AST, words: frozenset[str] = NAME_WORDS) -> list[str]:
    """List the defined names of which a part, in snake or camel case, is one of ``words``."""

    def parts(name: str) -> set[str]:
        name = re.sub("at_(least|most)", "", name)
        return {part.lower() for part in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}

    return sorted(name for name in defined_names(tree) if parts(name) & words)


def prose_words(tree: ast.AST, text: str) -> list[tuple[int, str]]:
    """List the glossary words in comments and in texts of more than one word, each with its line."""
    texts = [(token.start[0], token.string) for token in _tokens(text) if token.type == tokenize.COMMENT]
    texts += [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"\S\s+\S", node.value)
    ]
    words = []
    for line, prose in texts:
        # Blanks of the same length keep the lines right.
        checked = RIGHT_PHRASES.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), prose)
        words += [(line + checked[: match.start()].count("\n"), match[0]) for match in PROSE_WORDS.finditer(checked)]
    return sorted(words)


def measure_file(file: Path) -> Counter[str]:
    """Count in one file what :func:`measure` sums."""
    text = file.read_text()
    tree = ast.parse(text)
    num_lines = text.count("\n")
    bodies = list(functions(tree))
    public = [node for node in public_functions(tree) if num_parameters(node) > 1]
    names = list(assigned_names(tree))
    words = NAME_WORDS | SERVING_WORDS if file.is_relative_to(ROOT / "serve_apps") else NAME_WORDS
    return Counter(
        files=1,
        lines=num_lines,
        long_files=num_lines > LONG_FILE_LINES,
        functions=len(bodies),
        long_functions=sum((node.end_lineno or 0) - node.lineno + 1 > LONG_FUNCTION_LINES for node in bodies),
        documented_functions=sum(ast.get_docstring(node) is not None for node in bodies),
        public_functions=len(public),
        without_args=sum("Args:" not in (ast.get_docstring(node) or "") for node in public),
        comments=count_comments(text),
        names=len(names),
        role_word_names=sum(name.lstrip("_") in ROLE_WORDS for name in names),
        prose_words=len(prose_words(tree, text)),
        name_words=len(name_words(tree, words)),
        any=count_any(tree),
        long_test_names=sum(node.name.startswith("test_") and len(node.name) > LONG_TEST_NAME for node in bodies),
    )


def measure(*tops: str) -> dict[str, float]:
    """Measure Python files.

    Args:
        tops: Files and folders of the repository.

    Returns:
        Figure by name: counts, and shares in per cent or per 100 or 1,000 lines. ``without_args_pct`` is the share of
        public functions of more than one parameter whose docstring has no ``Args:``.
    """
    files = python_files(*tops)
    totals: Counter[str] = Counter()
    for file in files:
        totals += measure_file(file)
    counts = ("files", "lines", "long_files", "functions", "long_functions", "long_test_names")
    return {
        **{name: totals[name] for name in (*counts, "prose_words", "name_words")},
        "import_circles": len(import_circles(files, ROOT)),
        "comments_per_100": round(100 * totals["comments"] / totals["lines"], 2),
        "role_word_names_pct": round(100 * totals["role_word_names"] / max(totals["names"], 1), 2),
        "without_args_pct": round(100 * totals["without_args"] / max(totals["public_functions"], 1), 1),
        "d401_pct": round(100 * count_d401(*tops) / max(totals["documented_functions"], 1), 1),
        "any_per_1000": round(1000 * totals["any"] / totals["lines"], 1),
    }


def list_words(*tops: str) -> Iterator[str]:
    """Iterate over ``FILE:LINE: WORD`` of glossary words in prose and ``FILE: NAME`` of those in names."""
    for file in python_files(*tops):
        text, name = file.read_text(), file.relative_to(ROOT)
        tree = ast.parse(text)
        yield from (f"{name}:{line}: {word}" for line, word in prose_words(tree, text))
        words = NAME_WORDS | SERVING_WORDS if name.parts[0] == "serve_apps" else NAME_WORDS
        yield from (f"{name}: {word}" for word in name_words(tree, words))


def main(arguments: list[str]) -> int:
    """Print both tables as JSON, and write them to ``out=FILE`` where one is named; or list the words below a path."""
    options = dict(argument.partition("=")[::2] for argument in arguments)
    unknown = [argument for argument in arguments if argument.partition("=")[0] not in ("out", "words")]
    if unknown or not all(options.values()):
        print(f"error: {' '.join(unknown or arguments)}: expected out=FILE or words=PATH", file=sys.stderr)
        return 2
    if "words" in options:
        print("\n".join(list_words(options["words"])))
        return 0
    result = {"product": measure(*PRODUCT), "tests": measure("tests"), "aims": LIMITS}
    text = json.dumps(result, indent=1)
    print(text)
    if "out" in options:
        Path(options["out"]).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
