"""Templates: text from outside stays text, and a forgotten name is an error."""

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from wm.evaluation.report.cells import Cell, Grid
from wm.evaluation.report.templates import render
from wm.templates import render_template

NASTY = "</td><script>alert('x')</script>{{ title }} \"&\""
ESCAPED = "&lt;/td&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;{{ title }} &#34;&amp;&#34;"


def test_every_text_of_a_table_is_escaped():
    cell = Cell(NASTY, small=NASTY, hint=NASTY, kind=NASTY, background=NASTY)
    html = render(
        "data.html", stages=Grid([NASTY], [[NASTY], [cell]], [NASTY, ""]), reasons=Grid([], []), selections=[]
    )
    assert "<script>" not in html and html.count(ESCAPED) == 8


def test_html_of_a_section_is_not_escaped_twice():
    html = render("training.html", charts=[Markup("<svg></svg>")])
    assert '<div class="card"><svg></svg></div>' in html


def test_a_title_is_never_a_template():
    html = render_template("wm.viewer", "web", "index.html", title=NASTY)
    assert isinstance(html, Markup) and html.count(ESCAPED) == 2


def test_a_name_that_nobody_gave_is_an_error():
    with pytest.raises(UndefinedError, match="charts"):
        render("training.html")
