"""Find every recipe class of the project."""

import importlib
import re
from pathlib import Path

from wm.config import Recipe

ROOT = Path(__file__).resolve().parents[2]


def recipe_classes() -> list[type[Recipe]]:
    """List every recipe class of the project, those of tables in recipes too, by module and name."""
    for top in ("wm", "jobs", "serve_apps"):
        for file in (ROOT / top).rglob("*.py"):
            if re.search(r"^class \w+\(.*[A-Z]", text := file.read_text(), re.MULTILINE) and "Recipe" in text:
                importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    classes, queue = {}, [Recipe]
    while queue:
        for kind in queue.pop().__subclasses__():
            queue.append(kind)
            if kind.__module__.split(".")[0] in ("wm", "jobs", "serve_apps"):
                classes[f"{kind.__module__}.{kind.__name__}"] = kind
    return [classes[name] for name in sorted(classes)]
