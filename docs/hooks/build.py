"""Add the generated pages to the site while MkDocs builds it."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add images of the repository.

    Args:
        files: Those below ``docs/pages``.
        config: Of the site.

    Returns:
        The same, with what was added.
    """
    for name in ("wall.png", "playground.png"):
        files.append(File.generated(config, f"images/{name}", abs_src_path=str(ROOT / ".github" / name)))
    return files
