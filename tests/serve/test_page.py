"""The page in a real browser: by address, by photo, by keyboard; and how it looks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from chromium import PROGRAM, browser
from live_app import live
from PIL import Image

from tripletmas.cli.main import main
from tripletmas.index.images import ImageIndex
from tripletmas.report.style import THEMES, contrast
from tripletmas.serve.making import make_app

PAGE = Path(__file__).resolve().parents[2] / "tripletmas" / "serve" / "page"
RANKS = "[...document.querySelectorAll('.found a strong')].map((each) => each.textContent)"
PATHS = "[...document.querySelectorAll('.found .path')].map((each) => each.textContent)"
STATUS = "document.getElementById('status').textContent"
LOADED = "document.querySelectorAll('.found li').length && [...document.images].every((each) => each.complete)"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("no Chromium is installed here, in which the page could be tried")
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab
        assert tab.complaints == []


@pytest.fixture(scope="module")
def address(made):
    with live(make_app(str(made / "shop.index"), device="cpu")) as address:
        yield address


def opened(tab, address: str, *, until: str = "!document.getElementById('controls').hidden") -> None:
    tab.screen(1200, 900)
    tab.open(address)
    tab.wait(until)


# --- without a browser


def test_its_colours_are_those_of_the_reports():
    css = (PAGE / "page.css").read_text()
    for theme, block in zip(THEMES, re.findall(r":root \{ (.*?) \}", css), strict=True):
        colours = dict(re.findall(r"--(\w+): (#\w+);", block))
        assert colours == {name: getattr(theme, name) for name in colours}
        assert {"background", "ink", "muted", "accent", "wrong"} <= set(colours)
        assert contrast(colours["background"], colours["accent"]) >= 4.5  # the button's text upon it


def test_it_loads_nothing_from_elsewhere_and_runs_nothing_inside():
    for path in PAGE.iterdir():
        content = path.read_text()
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", content), path.name
        assert not re.findall(r"innerHTML|insertAdjacentHTML|outerHTML|document\.write|eval\(", content), path.name
        if path.suffix == ".html":
            assert not re.findall(r"<script>|\bon\w+=|style=", content), path.name


# --- in it


@pytest.mark.slow
def test_an_address_searches_by_itself(tab, address, made):
    opened(tab, f"{address}/#id=13&k=5", until=LOADED)
    assert len(tab.run(RANKS)) == 5
    assert re.match(r"1 · 0\.\d{3}", tab.run(RANKS)[0])
    assert tab.run("document.querySelector('h2').textContent") == "mug/1.png"
    assert tab.run(STATUS) == "5 neighbours, nearest first; score: cosine"
    assert tab.run("document.querySelectorAll('.vanished').length") == 0
    assert tab.run("document.title") == "shop · tripletmas"
    opened(tab, f"{address}/#id=13&k=24&label=mug", until=LOADED)
    assert set(tab.run(PATHS)) == {f"mug/{number}.png" for number in (0, 2, 3, 4, 5)}
    opened(tab, f"{address}/#id=13&k=24&min=2", until=f"{STATUS}.startsWith('0 of 23')")
    assert tab.run("document.querySelector('.nothing').textContent") == "No match: all 23 scores are lower."


@pytest.mark.slow
def test_photos_are_chosen_dropped_and_pasted(tab, address, made):
    opened(tab, address)
    assert tab.run(STATUS).startswith("Nothing is asked yet")
    assert tab.run("document.querySelectorAll('.some .found a').length") == 12
    assert tab.run(RANKS) == []  # nothing was asked for
    tab.choose("#photo", made / "shop" / "mug" / "3.png", made / "shop" / "lamp" / "1.png")
    tab.wait(f"{LOADED} && document.querySelectorAll('.query').length === 2")
    assert tab.run("[...document.querySelectorAll('h2')].map((each) => each.textContent)") == ["3.png", "1.png"]
    assert tab.run(PATHS)[0] == "mug/3.png"
    given = (("drop", "DragEvent", "dataTransfer"), ("paste", "ClipboardEvent", "clipboardData"))
    for kind, event, place in given:
        opened(tab, address)
        tab.run(
            f"""fetch('thumbnail/19').then((each) => each.blob()).then((blob) => {{
            const {place} = new DataTransfer();
            {place}.items.add(new File([blob], 'given.webp', {{ type: 'image/webp' }}));
            document.body.dispatchEvent(new {event}('{kind}', {{ {place}, bubbles: true }})); }})"""
        )
        tab.wait(f"{LOADED} && document.querySelector('h2').textContent === 'given.webp'")
    tab.run(
        """(() => { const data = new DataTransfer();
        data.items.add(new File(['a, b'], 'prices.csv', { type: 'text/csv' }));
        document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true })); })()"""
    )
    assert "This is no image" in tab.run("document.getElementById('error').textContent")
    broken = made / "broken.png"
    broken.write_text("nothing")
    tab.choose("#photo", broken)
    tab.wait("!document.getElementById('error').hidden && document.querySelectorAll('.query').length === 0")
    assert tab.run("document.getElementById('error').textContent") == "broken.png cannot be read: not an image."
    tab.complaints.clear()  # the browser writes the refusal into its log, too


@pytest.mark.slow
def test_the_keyboard_is_enough(tab, address):
    opened(tab, address)
    focus = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
    seen = []
    for _ in range(4):
        tab.press("Tab")
        seen.append(tab.run(focus))
    assert seen == ["photo", "label", "k", "A"]  # the slider has nothing to choose from yet
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened(tab, f"{address}/#id=13&k=9", until=LOADED)
    tab.run("document.querySelector('.found a').focus()")
    rank = "document.activeElement.querySelector('strong').textContent.split(' ')[0]"
    columns = tab.run("getComputedStyle(document.querySelector('.found')).gridTemplateColumns.split(' ').length")
    for key, expected in (("ArrowRight", 2), ("ArrowDown", 2 + columns), ("ArrowLeft", 1 + columns), ("ArrowUp", 1)):
        tab.press(key)
        assert tab.run(rank) == str(expected), key
    tab.press("End")
    assert tab.run(rank) == "9"
    tab.press("Home")
    first = tab.run(PATHS)[0]
    tab.press("Enter")
    tab.wait(f"document.querySelector('h2')?.textContent === '{first}'")
    tab.wait(LOADED)
    assert tab.run("document.activeElement.tagName") == "H2"  # whoever cannot see hears where they are
    tab.run("history.back()")
    tab.wait("document.querySelector('h2')?.textContent === 'mug/1.png'")
    tab.press("Escape")
    tab.wait(f"{STATUS}.startsWith('Nothing is asked yet')")
    assert tab.run("location.hash") in ("", "#k=9")
    assert tab.run(focus) == "photo"


@pytest.mark.slow
def test_label_number_and_threshold(tab, address):
    opened(tab, f"{address}/#id=13&k=23", until=LOADED)
    change = """(id, value, kind) => {
        const at = document.getElementById(id); at.value = value; at.dispatchEvent(new Event(kind)); }"""
    scores = [float(each.split(" · ")[1]) for each in tab.run(RANKS)]
    least = (scores[4] + scores[5]) / 2
    tab.run(f"({change})('least', {least}, 'input')")
    assert len(tab.run(RANKS)) == 5
    assert tab.run(STATUS).startswith("5 of 23 neighbours")
    assert tab.run("document.getElementById('least').getAttribute('aria-valuetext')") == f"{least:.3f}"
    tab.run(f"({change})('label', 'vase', 'change')")
    tab.wait("[...document.querySelectorAll('.named')].every((each) => each.textContent === 'vase')")
    tab.run(f"({change})('label', 'vasee', 'change')")
    tab.wait("!document.getElementById('error').hidden")
    assert "did you mean 'vase'?" in tab.run("document.getElementById('error').textContent")
    tab.complaints.clear()
    tab.run(f"({change})('label', '', 'change')")
    tab.run(f"({change})('k', '3', 'change')")
    tab.wait(f"{STATUS}.includes('of 3 neighbours') || {STATUS}.startsWith('3 neighbours')")


@pytest.mark.slow
def test_names_are_shown_and_never_obeyed(tab, made, shop, write_images):
    evil = shop / "pictures" / '<img src=x onerror="document.title=1">'
    write_images(evil, count=2)
    assert main(["index", "add", str(shop / "shop.index"), "--images", str(shop / "pictures")]) == 0
    with live(make_app(str(shop / "shop.index"), device="cpu")) as address:
        opened(tab, f"{address}/#id=24&k=3", until=LOADED)
        assert tab.run("document.querySelector('h2').textContent").startswith("<img src=x")
        assert tab.run("document.querySelectorAll('h2 img, .named img').length") == 0
        assert tab.run("document.title") == "shop · tripletmas"
        shutil.rmtree(shop / "pictures")
        tab.call("Network.clearBrowserCache")
        opened(tab, f"{address}/#id=24&k=3", until=LOADED)
        tab.wait("document.querySelector('.asked .vanished')?.textContent === 'missing'")
        tab.complaints.clear()


@pytest.mark.slow
def test_a_token_is_asked_for(tab, made):
    with live(make_app(str(made / "shop.index"), device="cpu", token="0123456789abcdef")) as address:
        opened(tab, f"{address}/#id=13&k=3", until="!document.getElementById('token-form').hidden")
        tab.wait("document.activeElement.id === 'token'")
        assert tab.run("document.getElementById('controls').hidden")
        tab.write("wrong")
        tab.press("Enter")
        tab.wait("document.getElementById('error').textContent === 'The server does not know this token.'")
        tab.run("document.getElementById('token').value = '0123456789abcdef'")
        tab.press("Enter")
        tab.wait(f"{LOADED} && document.getElementById('token-form').hidden")
        tab.wait("[...document.images].every((each) => each.src.startsWith('blob:') && each.naturalWidth)")
        tab.run("sessionStorage.clear()")
        tab.complaints.clear()


@pytest.mark.slow
def test_a_page_of_texts(tab, texts):
    with live(make_app(str(texts / "faq.index"), device="cpu")) as address:
        opened(tab, address)
        assert tab.run("document.getElementById('photo-form').hidden")
        tab.run("document.getElementById('text').focus()")
        tab.write("where is my parcel")
        tab.press("Enter")
        tab.wait("document.querySelector('h2').textContent === 'where is my parcel'")
        assert tab.run("document.querySelectorAll('.found q').length") == 12
        index = ImageIndex.open(texts / "faq.index")
        assert set(tab.run("[...document.querySelectorAll('.found q')].map((each) => each.textContent)")) <= set(
            index.texts
        )
        assert tab.run("location.hash") == "#text=where+is+my+parcel"
        tab.run("document.querySelector('.found a').click()")
        tab.wait("location.hash.includes('id=')")


@pytest.mark.slow
def test_it_fits_a_phone_and_turns_dark(tab, address, tmp_path):
    opened(tab, f"{address}/#id=13&k=9", until=LOADED)
    light = "getComputedStyle(document.body).backgroundColor"
    assert tab.run(light) == "rgb(255, 255, 255)"
    tab.screen(390, 844, dark=True, phone=True)
    assert tab.run(light) == "rgb(20, 24, 29)"
    assert tab.run("document.documentElement.scrollWidth") == 390
    heights = """[...document.querySelectorAll('button, .button, input:not(.hidden), .found a')]
        .filter((each) => each.offsetParent).map((each) => each.getBoundingClientRect().height)"""
    assert min(tab.run(heights)) >= 40  # for fingers
    with Image.open(tab.picture(tmp_path / "phone.png")) as image:
        assert image.size == (780, 1688)
        assert image.convert("L").resize((1, 1)).getpixel((0, 0)) < 110


@pytest.mark.slow
def test_the_page_of_the_description(tab, address):
    opened(tab, f"{address}/docs", until="document.querySelectorAll('section').length === 5")
    words = tab.run("document.body.innerText")
    for name in ("POST /query", "GET /thumbnail/{id}", "min_score", "multipart/form-data", "Retry-After"):
        assert name in words
