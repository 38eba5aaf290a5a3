"""Read from the source which modules import which, and find circles among them."""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path


def imports(path: Path, root: Path) -> set[str]:
    """List the modules that a file imports anywhere, functions and ``TYPE_CHECKING`` included.

    Args:
        path: A Python file below ``root``.
        root: Folder of the top-level packages.

    Returns:
        Absolute names; of ``from package import name`` the package, and ``package.name`` where that is a module.
    """
    names: set[str] = set()
    package = ".".join(path.relative_to(root).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            prefix = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*prefix, *filter(None, [node.module])])
            submodules = {f"{module}.{alias.name}" for alias in node.names if _exists(root, module, alias.name)}
            # A package that only gives access to its modules is not what is imported.
            names |= submodules if len(submodules) == len(node.names) else {module} | submodules
    return names


def _exists(root: Path, module: str, name: str) -> bool:
    """Return whether ``name``, imported from ``module``, is a module itself rather than something in it."""
    path = root.joinpath(*module.split("."), name)
    return path.is_dir() or path.with_suffix(".py").is_file()


def import_circles(files: Iterable[Path], root: Path) -> list[list[str]]:
    """Find the sets of modules that import each other, directly or through others.

    Args:
        files: Python files below ``root``.
        root: Folder of the top-level packages.

    Returns:
        The names of each circle's modules, sorted.
    """
    graph = {}
    for file in files:
        parts = file.relative_to(root).with_suffix("").parts
        graph[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = imports(file, root)
    reached = {module: _reach(module, graph) for module in graph}
    circles = {tuple(sorted(other for other in names if module in reached[other])) for module, names in reached.items()}
    return sorted(list(circle) for circle in circles if len(circle) > 1)


def _reach(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    """Collect the modules of the graph that a module imports, directly or through others."""
    names: set[str] = set()
    pending = [start]
    while pending:
        new = graph[pending.pop()] & graph.keys() - names
        names |= new
        pending += new
    return names
