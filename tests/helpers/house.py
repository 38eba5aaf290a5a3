"""Measure how the code reads: ``python -m tests.helpers.house [out=FILE.json]`` prints lines, long files and functions,
comments, docstrings, names and types of the product and of the tests.

Knows only the syntax tree and the tokens of each file; it imports nothing of the product. D401 (imperative docstrings)
is counted by ruff.
"""

import ast
import io
import json
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

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

LIMITS = {"any_per_1000": 10.0, "comments_per_100": 4.0, "role_word_names_pct": 1.0, "d401_pct": 2.0}
"""Aims: a maximum each, but for comments, which are a minimum."""


def python_files(*tops: str) -> list[Path]:
    """List the Python files below folders of the repository."""
    return sorted(file for top in tops for file in (ROOT / top).rglob("*.py"))


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
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    steering = ("# noqa", "# type:", "#!", "# fmt:", "# pragma", "# mypy:")
    return sum(token.type == tokenize.COMMENT and not token.string.startswith(steering) for token in tokens)


def count_d401(*tops: str) -> int:
    """Count docstrings that ruff (rule D401, Google convention) does not read as imperative."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "D401",
        "--output-format",
        "json",
        *tops,
    ]
    convention = ["--config", 'lint.pydocstyle.convention = "google"']
    done = subprocess.run([*command, *convention], cwd=ROOT, capture_output=True, text=True, check=False)
    return len(json.loads(done.stdout))


def measure(*tops: str) -> dict[str, float]:
    """Measure the Python files below ``tops``.

    Args:
        tops: Folders of the repository.

    Returns:
        Figure by name: counts, and shares in per cent or per 100 or 1,000 lines.
    """
    totals: Counter[str] = Counter()
    for file in python_files(*tops):
        text = file.read_text()
        tree = ast.parse(text)
        num_lines = text.count("\n")
        names = list(assigned_names(tree))
        bodies = list(functions(tree))
        totals += Counter(
            files=1,
            lines=num_lines,
            long_files=num_lines > LONG_FILE_LINES,
            functions=len(bodies),
            long_functions=sum((node.end_lineno or 0) - node.lineno + 1 > LONG_FUNCTION_LINES for node in bodies),
            documented_functions=sum(ast.get_docstring(node) is not None for node in bodies),
            comments=count_comments(text),
            names=len(names),
            role_word_names=sum(name.lstrip("_") in ROLE_WORDS for name in names),
            any=count_any(tree),
        )
    return {
        **{name: totals[name] for name in ("files", "lines", "long_files", "functions", "long_functions")},
        "comments_per_100": round(100 * totals["comments"] / totals["lines"], 2),
        "role_word_names_pct": round(100 * totals["role_word_names"] / totals["names"], 2),
        "d401_pct": round(100 * count_d401(*tops) / max(totals["documented_functions"], 1), 1),
        "any_per_1000": round(1000 * totals["any"] / totals["lines"], 1),
    }


def main(arguments: list[str]) -> int:
    """Print both tables as JSON, and write them to ``out=FILE`` where one is named."""
    result = {"product": measure(*PRODUCT), "tests": measure("tests"), "aims": LIMITS}
    text = json.dumps(result, indent=1)
    print(text)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "out" or not value:
            print(f"error: {argument!r}: expected out=FILE", file=sys.stderr)
            return 2
        Path(value).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
