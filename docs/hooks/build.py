"""Add the generated pages to the site while MkDocs builds it.

A line ``<!-- generated: NAME -->`` in a page is replaced by what :data:`PARTS` has under this name.
"""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # mkdocs is called from anywhere
    sys.path.insert(0, str(ROOT))

from docs.generate.recipes import build_recipe_menu, build_recipe_pages, list_summaries  # noqa: E402

PARTS = {"commands": list_summaries}
"""What a page may ask for, and the function that writes it."""

_PART = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the recipes' pages into the menu.

    Args:
        config: Of the site.

    Returns:
        The same.
    """
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Recipes" in entry:
            entry["Recipes"] = [*entry["Recipes"], *build_recipe_menu()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the images of the repository.

    Args:
        files: Those below ``docs/pages``.
        config: Of the site.

    Returns:
        The same, with what was added.
    """
    for name, text in build_recipe_pages().items():
        files.append(File.generated(config, f"recipes/{name}", content=text))
    for name in ("wall.png", "playground.png"):
        files.append(File.generated(config, f"images/{name}", abs_src_path=str(ROOT / ".github" / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the generated parts into a page.

    Args:
        markdown: Its text.
        page: The page, for messages.
        config: Of the site; not needed.
        files: Of the site; not needed.

    Returns:
        The text with its parts.

    Raises:
        PluginError: It asks for a part that does not exist.
    """

    def build(match: re.Match[str]) -> str:
        if match[1] not in PARTS:
            raise PluginError(f"{page.file.src_uri}: generated part {match[1]!r}; expected one of {', '.join(PARTS)}")
        return PARTS[match[1]]()

    return _PART.sub(build, markdown)
