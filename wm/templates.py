"""Render the HTML templates (Jinja2) of a package. Knows no template.

Every value is escaped, so that text from outside stays text; a name that a template uses and nobody gave is an error.
"""

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@lru_cache(maxsize=4)
def _environment(package: str, folder: str) -> Environment:
    return Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        # A misspelt name must not render as nothing.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_template(package: str, folder: str, name: str, **values: object) -> Markup:
    """Render a template.

    Args:
        package: Package that holds the templates, such as ``wm.evaluation.report``.
        folder: Folder of the templates in the package.
        name: File of the template.
        **values: Names that the template uses; only :class:`Markup` among them is not escaped.

    Returns:
        HTML.
    """
    return Markup(_environment(package, folder).get_template(name).render(**values))
