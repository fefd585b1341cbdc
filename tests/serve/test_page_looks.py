"""How the page shows what was likely, and how it looks: shades and cards, keyboard and touch, languages, colours and a phone's width."""

import math
import re

import pytest

from tests.serve import browser
from tests.serve.browser import answer_text, ask
from tests.serve.running import KEY

pytestmark = browser.NEEDED
PHONE = {"width": 360, "height": 700}


# --- probabilities ---


def test_hover_shows_what_was_likely(opened, writer):
    page = opened()
    ask(page)
    page.locator(".token").first.hover()
    card = page.locator("#card")
    first = writer.pieces[0]
    assert card.locator("p code").text_content() == first.bytes.decode()
    assert card.locator("li").count() == 5
    assert card.locator("li.chosen code").text_content() == first.bytes.decode()
    shown = card.locator("p b").text_content()
    assert shown == f"{100 * math.exp(first.logprob):.0f}%"
    page.hover("#prompt")
    assert card.is_hidden()


def test_a_character_of_several_tokens_is_one_piece(opened, writer):
    assert any(writer.is_half(place) for place in range(writer.num_tokens))
    page = opened()
    ask(page)
    assert "\ufffd" not in answer_text(page)
    assert page.locator(".token").count() < writer.num_tokens
    page.locator(".token", has_text="月").hover()
    assert page.text_content("#card p code") == "月"
    assert page.locator("#card ul").count() == 2
    assert page.locator("#card li.chosen code").all_text_contents() == ["e6 9c", "88"]


def test_shading_is_by_surprise_and_can_be_switched_off(opened, writer):
    page = opened()
    ask(page)
    shade = "e => getComputedStyle(e).backgroundColor"
    by_surprise = page.evaluate(
        "() => [...document.querySelectorAll('.token')].map(e => [+e.style.getPropertyValue('--surprise'),"
        " +getComputedStyle(e).backgroundColor.match(/[\\d.e-]+(?=\\)$)/)[0]])"
    )
    assert by_surprise[0][0] == pytest.approx(1 - math.exp(writer.pieces[0].logprob))
    alphas = [alpha for _, alpha in sorted(by_surprise)]
    assert alphas == sorted(alphas) and alphas[0] < alphas[-1]
    page.uncheck("#shading")
    assert page.locator(".token").first.evaluate(shade) == "rgba(0, 0, 0, 0)"


def test_tap_shows_the_card(opened):
    page = opened(has_touch=True, viewport=PHONE)
    ask(page)
    page.locator(".token").nth(3).tap()
    assert page.locator("#card").is_visible()


def test_keyboard_alone_does_everything(opened, writer):
    page = opened(with_key=False)
    page.wait_for_selector("#door[open]")
    keys = page.keyboard
    keys.type(KEY)
    keys.press("Enter")
    page.wait_for_selector("#model:not(:empty)")
    keys.type("Hello")
    keys.press("Control+Enter")
    page.wait_for_selector(".tools")
    for _ in range(40):
        keys.press("Shift+Tab")
        if page.evaluate("() => document.activeElement.className") == "token":
            break
    card = page.locator("#card")
    assert card.is_visible()
    assert page.evaluate("() => document.activeElement.getAttribute('aria-describedby')") == "card"
    before = card.text_content()
    keys.press("ArrowRight")
    assert card.is_visible() and card.text_content() != before
    keys.press("Escape")
    assert card.is_hidden()
    keys.press("Tab")  # the answer is one stop
    assert page.evaluate("() => document.activeElement.textContent") == "Copy"
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"


# --- languages, colours, sizes ---


def test_chinese_by_the_browser_and_by_the_switch(opened):
    page = opened(locale="zh-CN")
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#language")
    assert page.get_attribute("html", "lang") == "en"
    ask(page)
    page.click("#language")
    assert "个词元" in page.text_content(".status")
    assert page.text_content("#send") == "发送"
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    assert page.get_attribute("html", "lang") == "zh-CN"
    said = page.evaluate("() => [...document.querySelectorAll('[data-say]')].map(e => [e.dataset.say, e.textContent])")
    same = {"other_language", "send_key", "top_p", "top_k", "min_p"}
    assert [name for name, text in said if name not in same and not re.search("[\u4e00-\u9fff]", text)] == []


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phone_scrolls_in_one_direction(opened, locale):
    page = opened(viewport=PHONE, locale=locale)
    ask(page, "W" * 200)
    page.click("summary")
    page.locator(".token").last.hover()
    assert page.evaluate("() => document.documentElement.scrollWidth") == PHONE["width"]
    box = page.locator("#card").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colour_schemes(opened, scheme):
    """WCAG 2.2, 1.4.3: a contrast of 4.5 or more, also where a token is most shaded."""
    page = opened(color_scheme=scheme)
    ask(page)
    for text, ground in [
        ("--ink", "--paper"),
        ("--faint", "--paper"),
        ("--faint", "--sunk"),
        ("--on-accent", "--accent"),
        ("--trouble", "--paper"),
    ]:
        assert browser.contrast(page, f"var({text})", f"var({ground})") >= 4.5, (text, ground)
    most_shaded = "color-mix(in srgb, var(--surprise-color) 52%, var(--paper))"
    assert browser.contrast(page, "var(--ink)", most_shaded) >= 4.5


def test_less_motion_where_asked_for(opened, writer):
    page = opened(reduced_motion="reduce")
    writer.secs_a_token = 0.02
    ask(page, until_done=False)
    page.wait_for_selector(".token")
    assert page.locator(".text").evaluate("e => getComputedStyle(e, '::after').animationName") == "none"
