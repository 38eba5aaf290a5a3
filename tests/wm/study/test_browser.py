"""The page of a study in a real browser, headless: a person with a keyboard, one with a phone, one who comes back, two
at once, and what the page says when something is refused."""

import json
from dataclasses import replace
from urllib.request import Request, urlopen

import pytest

from tests.helpers.browser import Browser
from tests.helpers.study_data import served_study, write_small_study
from wm.study.order import order_items, order_systems

IMAGES = "performance.getEntriesByType('resource').filter(one => one.name.includes('/images/'))"
VIEW = "document.documentElement.dataset.view"


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(window):
    """The window for one test, with no code kept; no script of it failed and no policy was violated."""
    window.shape(1280, 800)
    window.console.clear()
    yield window
    assert [line for line in window.console if "Failed to load resource" not in line] == []
    window.do("localStorage.clear()")


@pytest.fixture
def served(tmp_path):
    study = write_small_study(tmp_path, num_items=3, num_participants=4)
    with served_study(study, tmp_path) as (url, store):
        yield url, store, study


def wait_for(page, view):
    page.wait(f"{VIEW} === '{view}'")


def join(page, url):
    """From the consent to the first item; the code."""
    page.open(url)
    page.click("#join button")
    wait_for(page, "ready")
    code = page.text("#ready-code")
    page.click("#begin")
    wait_for(page, "item")
    return code


def choose(page, best, worst):
    page.click("#best .option", best)
    page.click("#worst .option", worst)


def save(page, following):
    """Submit; ``following``: the number of the item that comes then, or None at the end."""
    page.click("#submit")
    page.wait(
        f"document.querySelector('#count').textContent.startsWith('{following} ')"
        if following
        else f"{VIEW} === 'finished'"
    )


def focus_of(page):
    return page.do("((node) => node.id || node.getAttribute('aria-label') || node.textContent)(document.activeElement)")


def tab_to(page, target):
    """Tab until the focus is there; how often."""
    for count in range(40):
        if focus_of(page) == target:
            return count
        page.press("Tab")
    raise AssertionError(f"no way to {target} by Tab; the focus is at {focus_of(page)}")


def test_a_whole_study_by_keyboard_alone(page, served):
    url, store, study = served
    page.open(url)
    assert focus_of(page) == "start-title"
    tab_to(page, "I agree and take part")
    page.press("Enter")
    wait_for(page, "ready")
    tab_to(page, "begin")
    page.press("Enter")
    wait_for(page, "item")
    # 1. Radio groups by Tab and arrows, as in any form; the focus can be seen.
    assert focus_of(page) == "action"
    page.press("Tab")
    assert focus_of(page) == "Enlarge the input image"
    page.press("Enter")
    assert page.do("document.querySelector('#zoom').open") and page.text("#zoom-name") == "Input"
    page.press("ArrowRight")
    assert page.text("#zoom-name") == "Model 1"
    page.press("Escape")
    page.wait("!document.querySelector('#zoom').open")
    tab_to(page, "Model 1")
    page.press(" ")
    page.press("ArrowRight")
    assert page.do("document.querySelector('#best input:checked').value") == "1"
    assert page.do("getComputedStyle(document.querySelector('#best input:checked + span')).outlineStyle") == "solid"
    page.press("Tab")
    page.press(" ")
    tab_to(page, "submit")
    page.press("Enter")
    page.wait("document.querySelector('#count').textContent === '2 of 3'")
    # 2. Digits.
    assert focus_of(page) == "action"
    page.press("3")
    page.press("4", shift=True)
    page.press("Enter")
    page.wait("document.querySelector('#count').textContent === '3 of 3'")
    page.press("1")
    page.press("2", shift=True)
    page.press("Enter")
    wait_for(page, "finished")
    assert "All 3 answers are saved" in page.text("#finished")
    votes = store.list_votes(study.study_id)
    positions = [(vote.systems.index(vote.best), vote.systems.index(vote.worst)) for vote in votes]
    assert positions == [(1, 0), (2, 3), (0, 1)]
    assert [vote.item_id for vote in votes] == [item.item_id for item in order_items(study, 0)]
    assert page.text("#finished-code") == votes[0].participant and all(0 < vote.seconds < 60 for vote in votes)


def test_a_phone_shows_all_of_it_in_its_width(page, served):
    url, _, _ = served
    page.shape(360, 740, phone=True)

    def overflow():
        return page.do("document.documentElement.scrollWidth - innerWidth")

    page.open(url)
    assert overflow() == 0
    join(page, url)
    assert overflow() == 0
    # Fingers need 44 px; the images stay in sight above the choices.
    sizes = page.do(
        "[...document.querySelectorAll('.option, #submit')].map(node => Math.min(node.offsetWidth, node.offsetHeight))"
    )
    assert min(sizes) >= 44
    assert page.do("document.querySelector('.panel').getBoundingClientRect().top") > 500
    choose(page, 0, 3)
    heights = page.do("[...document.querySelectorAll('#candidates .shot')].map(node => node.offsetWidth)")
    assert len(set(heights)) == 1 and heights[0] > 150
    page.click("#candidates .shot", 1)
    assert page.do("document.querySelector('#zoom img').offsetWidth") > 300 and overflow() == 0
    page.click("#zoom-close")
    save(page, 2)


def test_reload_and_return_lead_to_the_same_item(page, served):
    url, store, study = served
    code = join(page, url)
    choose(page, 0, 1)
    save(page, 2)
    action = page.text("#action")
    page.open(url)
    assert (page.text("#count"), page.text("#action"), page.text("#foot-code")) == ("2 of 3", action, code)
    # The device is left, and found again by the code, typed as people do.
    page.click("#leave")
    assert page.text("#left-code") == code and page.do("localStorage.length") == 0
    page.open(url)
    page.type("#code", "bbbb-bbbb-bbbb")
    page.press("Enter")
    page.wait("document.querySelector('#error-text').textContent.includes('Nobody takes part')")
    page.type("#code", code.lower().replace("-", " "))
    page.press("Enter")
    wait_for(page, "item")
    assert (page.text("#count"), page.text("#action")) == ("2 of 3", action)
    assert len(store.list_participants(study.study_id)) == 1 and page.do("document.cookie") == ""


def test_a_second_tab_joins_no_second_time(page, served):
    url, store, study = served
    page.open(url)
    body = json.dumps({"study_id": study.study_id, "consent": True}).encode()
    request = Request(f"{url}api/participants", body, {"content-type": "application/json"})
    code = json.load(urlopen(request))["code"]
    # What the first tab leaves behind; the second one still shows the consent.
    page.do(f"localStorage.setItem('wm-study-code-{study.study_id}', '{code}')")
    page.click("#join button")
    wait_for(page, "item")
    assert page.text("#foot-code") == code and len(store.list_participants(study.study_id)) == 1
    # A server that does not know the code, as with another store: the code is not lost.
    store.withdraw(study.study_id, code)
    choose(page, 0, 1)
    page.click("#submit")
    wait_for(page, "start")
    assert page.do("document.querySelector('#code').value") == code


@pytest.mark.soak
def test_two_at_once_see_orders_of_their_own(page, served, tmp_path):
    url, store, study = served
    with Browser(tmp_path / "other") as other:
        codes = [join(one, url) for one in (page, other)]
        for number in (2, 3, None):
            for one in (page, other):
                choose(one, 0, 1)
            for one in (page, other):
                save(one, number)
        assert other.console == []
    votes = store.list_votes(study.study_id)
    for number, code in enumerate(codes):
        own = [vote for vote in votes if vote.participant == code]
        items = order_items(study, number)
        assert [vote.item_id for vote in own] == [item.item_id for item in items]
        assert [vote.systems for vote in own] == [tuple(order_systems(study, item, number)) for item in items]
    assert len(votes) == 6 and codes[0] != codes[1]


def test_what_is_refused_is_said_and_nothing_is_lost(page, served):
    url, store, study = served
    code = join(page, url)
    error = "document.querySelector('#error-text').textContent"
    # 1. Nothing, then one model as both.
    page.click("#submit")
    assert page.text("#error-text") == "Choose the best and the worst one."
    choose(page, 1, 1)
    page.click("#submit")
    assert "must be two different models" in page.text("#error-text") and "Best and worst?" in page.text("#candidates")
    # 2. The item was answered on another device meanwhile.
    headers = {"x-participant": code, "content-type": "application/json"}
    progress = json.load(urlopen(Request(f"{url}api/progress", headers=headers)))
    choice = {
        "study_id": study.study_id,
        "item_id": progress["question"]["item_id"],
        "best": 3,
        "worst": 2,
        "seconds": 1,
    }
    urlopen(Request(f"{url}api/votes", json.dumps(choice).encode(), headers))
    choose(page, 0, 1)
    save(page, 2)
    page.wait(f"{error}.includes('first choice counts')")
    # 3. The disk is full, and then no longer: the choice is still on the page.
    choose(page, 2, 0)
    page.do("document.querySelector('#error-close').click()")
    store._connection.execute("PRAGMA query_only = ON")
    page.click("#submit")
    page.wait(f"{error}.includes('Nothing was saved')")
    store._connection.execute("PRAGMA query_only = OFF")
    save(page, 3)
    assert page.do("document.querySelector('#error').hidden")
    votes = store.list_votes(study.study_id)
    assert [(vote.systems.index(vote.best), vote.systems.index(vote.worst)) for vote in votes] == [(3, 2), (2, 0)]


@pytest.mark.soak
def test_a_person_withdraws_by_the_page(page, served):
    url, store, study = served
    join(page, url)
    page.click("#leave")
    page.click("#withdraw")
    page.click("#withdraw-yes")
    wait_for(page, "withdrawn")
    assert store.list_participants(study.study_id) == [] and store.count_withdrawn(study.study_id) == 1


@pytest.mark.soak
def test_an_invitation_opens_the_study_and_nothing_else_does(page, tmp_path):
    study = write_small_study(tmp_path, num_items=1)
    key = "an-invitation-of-22-letters"
    with served_study(study, tmp_path, keys=(key,), is_local=False) as (url, _):
        page.open(url)
        wait_for(page, "blocked")
        assert "link of your invitation" in page.text("#blocked-text")
        # With the full stop and the quote that some programs take for a part of the link.
        join(page, f"{url}#{key}.%E2%80%9D")
        # The key is kept on this device: a reload without it goes on.
        page.open(url)
        wait_for(page, "item")


HOSTILE = "<img src=x onerror=window.pwned=1><script>window.pwned=2</script>\"'` \u2028 é 名 &amp;"


def test_texts_of_a_study_are_never_markup(page, tmp_path):
    study = write_small_study(tmp_path, num_items=2)
    items = tuple(replace(item, action=HOSTILE) for item in study.items)
    study = replace(study, title=HOSTILE, consent=HOSTILE, instructions=f"{HOSTILE}\n- {HOSTILE}", items=items)
    with served_study(study, tmp_path) as (url, _):
        join(page, url)
        shown = HOSTILE.replace("\u2028", "").replace("  ", " ")
        assert page.text("#action").replace("\u2028", "").replace("  ", " ") == shown
        assert page.do("typeof window.pwned") == "undefined" and page.do("document.images.length") == 5


@pytest.mark.soak
def test_the_images_of_the_next_item_are_there_before_it(page, served):
    url, _, _ = served
    join(page, url)
    page.wait(f"{IMAGES}.length === 10")
    before = page.do(
        "JSON.stringify([...document.querySelectorAll('.shot')].map(node => node.getBoundingClientRect()))"
    )
    choose(page, 0, 1)
    save(page, 2)
    after = page.do("JSON.stringify([...document.querySelectorAll('.shot')].map(node => node.getBoundingClientRect()))")
    assert before == after
    # Of the second item none was loaded again: five came, those of the third.
    page.wait(f"{IMAGES}.filter(one => one.transferSize > 0).length === 15")
