"""Run a notebook's cells in this process and render it as a page.

``python -m docs.generate.notebook`` runs the tutorial anew and stores its outputs in the file.

Jupyter is not needed for either: a notebook is JSON, and what a cell shows is its last expression in the richest form
that it has, as Jupyter would choose it.
"""

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import TypedDict

PAGES = Path(__file__).resolve().parents[1] / "pages"
TUTORIAL = PAGES / "tutorial.ipynb"


class Output(TypedDict, total=False):
    """What a cell printed (``stream``) or showed (``execute_result``)."""

    output_type: str
    name: str
    text: list[str]
    data: dict[str, str | list[str]]
    metadata: dict[str, str]
    execution_count: int


class Cell(TypedDict, total=False):
    """A cell as nbformat 4.5 stores it."""

    cell_type: str
    id: str
    source: list[str]
    outputs: list[Output]
    metadata: dict[str, str]
    execution_count: int | None


def read_cells(path: Path) -> list[Cell]:
    """Read the cells of a notebook."""
    cells: list[Cell] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def run_cells(cells: list[Cell], names: dict[str, object] | None = None) -> list[Cell]:
    """Run the code of a notebook, cell after cell, in one namespace.

    Args:
        cells: Those of the notebook; they are not changed.
        names: The namespace; empty without it.

    Returns:
        The same cells with new outputs. An exception in a cell is raised.
    """
    names = {} if names is None else names
    results: list[Cell] = []
    count = 0
    for cell in cells:
        if cell["cell_type"] != "code":
            results.append(cell)
            continue
        count += 1
        outputs = _run_code("".join(cell["source"]), names, count)
        results.append({**cell, "outputs": outputs, "execution_count": count})
    return results


def render(cells: list[Cell]) -> str:
    """Render a notebook as Markdown: text as it is, code in blocks, outputs below.

    Args:
        cells: Those of the notebook, with outputs.
    """
    parts: list[str] = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_render_output(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _run_code(source: str, names: dict[str, object], count: int) -> list[Output]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"<cell {count}>", "exec"), names)
        # A cell that ends in an expression shows its value.
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"<cell {count}>", "eval"), names)
    outputs: list[Output] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        data = _show(value)
        outputs.append({"output_type": "execute_result", "execution_count": count, "data": data, "metadata": {}})
    return outputs


def _show(value: object) -> dict[str, str | list[str]]:
    """Build the forms in which Jupyter would show a value, richest first."""
    data: dict[str, str | list[str]] = {}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = [value._repr_html_()]
    elif hasattr(value, "_repr_png_"):
        data["image/png"] = base64.b64encode(value._repr_png_()).decode()
    # What has a richer form is not printed: its fields are codes and arrays.
    data["text/plain"] = [f"<{type(value).__name__}>" if data else repr(value)]
    return data


def _render_output(output: Output) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output["data"]
    if "text/html" in data:
        return f'<div class="output">{"".join(data["text/html"])}</div>'
    if "image/png" in data:
        return f'<div class="output"><img alt="output" src="data:image/png;base64,{data["image/png"]}"></div>'
    return f"```text\n{''.join(data['text/plain'])}\n```"


def main() -> None:
    """Run the tutorial anew and store its outputs."""
    notebook = json.loads(TUTORIAL.read_text(encoding="utf-8"))
    notebook["cells"] = run_cells(notebook["cells"])
    TUTORIAL.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
