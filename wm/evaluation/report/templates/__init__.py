"""Render the report's templates."""

from markupsafe import Markup

from wm.templates import render_template


def render(name: str, **values: object) -> Markup:
    """Render one of the HTML files of this folder.

    Args:
        name: File name.
        **values: As :func:`wm.templates.render_template` takes them.

    Returns:
        HTML.
    """
    return render_template("wm.evaluation.report", "templates", name, **values)
