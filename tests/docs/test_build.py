"""The documentation builds without a warning, has every key of every recipe, and loads nothing from elsewhere."""

import html
import re

from docs.generate.commands import list_commands
from docs.generate.recipes import EXAMPLES, GUIDES
from wm.recipe_help import list_key_help, list_renames


def test_links_anchors_and_menus_are_right(site):
    assert site.warnings == []


def test_every_page_of_the_source_is_built(site):
    pages = {path.relative_to(site.folder).as_posix() for path in site.folder.rglob("*.html")}
    assert pages >= {"index.html", "quickstart.html", "tutorial.html", "api/dynamics.html", "recipes/train.html"}
    assert {f"recipes/{command.page}.html" for command in list_commands()} <= pages
    assert "<!-- generated" not in "".join(site.read(page) for page in pages)


def test_every_key_of_every_recipe_is_on_its_page(site):
    for command in list_commands():
        text = html.unescape(site.read(f"recipes/{command.page}.html"))
        for key in list_key_help(command.recipe):
            anchor = f"[{key.path}]" if key.is_table else f'<a id="{key.path}"></a><code>{key.path}</code>'
            assert anchor in text, f"{command.words}: {key.path}"
            # The first words, as Markdown may set the rest in other type.
            assert re.split("[`*]", key.text)[0][:40] in text, f"{command.words}: {key.path}"
        assert all(f"<code>{old}</code>" in text for old in list_renames(command.recipe)), command.words


def test_every_command_has_an_example_and_a_guide(site):
    for command in list_commands():
        name = command.words.split()[0]
        assert EXAMPLES[command.words].startswith(f"wm {command.words}")
        assert (site.folder / f"{GUIDES[name]}.html").is_file()


def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(r"""<(?:script|img|link|iframe)[^>]*(?:src|href)=["'](?:https?:)?//[^"']+""")
    for page in site.folder.rglob("*.html"):
        assert loads.findall(page.read_text()) == [], page.name
    style = "".join(path.read_text() for path in site.folder.rglob("*.css"))
    assert re.findall(r"url\(['\"]?(?:https?:)?//", style) == []


def test_cross_references_of_docstrings_are_links(site):
    page = site.read("api/dynamics.html")
    assert ":func:" not in page and ":class:" not in page and "<autoref" not in page
    assert re.search(r'<a class="autorefs[^>]*><code>predict_observations</code></a>', page)
