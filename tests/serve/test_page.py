"""The page at `/` in headless Chromium, against the real application with a writer that knows its text by heart."""

import contextlib
import json
import math
import re

import pytest

from tests.serve import browser
from tests.serve.running import KEY, running
from tests.serve.scripted import TEXT, ScriptedWriter

pytestmark = pytest.mark.skipif(browser.find() is None, reason="chromium is not installed (tools/install_chromium.sh)")
PHONE = {"width": 360, "height": 700}
SLOW_SECS = 0.02


@pytest.fixture(scope="module")
def chromium():
    with browser.launched() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def writer():
    return ScriptedWriter()


@pytest.fixture(scope="module")
def url(writer):
    with running(writer, [KEY]) as server:
        yield f"{server.url}/"


@pytest.fixture
def opened(chromium, url, writer):
    """Opens a page of its own kind. Afterwards: no errors in the console, and no request went anywhere else."""
    writer.reset()
    with contextlib.ExitStack() as stack:
        seen = []

        def open_page(with_key=True, **kind):
            context = chromium.new_context(**{"locale": "en-US", **kind})
            stack.callback(context.close)
            page = context.new_page()
            seen.append(browser.Watch(page))
            page.set_default_timeout(10_000)
            page.goto(url)
            if with_key:
                give_key(page)
            return page

        yield open_page
        for watch in seen:
            assert watch.errors == []
            assert watch.hosts == {url.removeprefix("http://").rstrip("/")}


def give_key(page, key=KEY):
    page.fill("#key", key)
    page.press("#key", "Enter")
    page.wait_for_selector("#model:not(:empty)")


def ask(page, question="Why are there two tides a day?", until_done=True):
    page.fill("#prompt", question)
    page.press("#prompt", "Control+Enter")
    if until_done:
        page.wait_for_selector(".tools")


def events(*chunks):
    return "".join(f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n" for chunk in chunks)


def chunk(text, **more):
    return {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}], **more}


def tool(page, name):
    return page.locator(".tools").get_by_text(name, exact=True)


def answer_text(page):
    return page.locator(".text").last.text_content()


# --- the key ---


def test_asks_for_the_key_once(opened, url):
    page = opened(with_key=False)
    page.wait_for_selector("#door[open]")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    page.wait_for_selector("#wrong:visible")
    give_key(page)
    assert page.url == url
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    assert page.evaluate("() => [sessionStorage.length, localStorage.length]") == [1, 0]
    page.click("#forget")
    page.wait_for_selector("#door[open]")
    assert page.evaluate("() => [sessionStorage.length, localStorage.length]") == [0, 0]
    assert page.locator("#wrong").is_hidden()


def test_remembers_the_key_where_asked_to(opened):
    page = opened(with_key=False)
    page.check("#remember")
    give_key(page)
    assert page.evaluate("() => [sessionStorage.length, Object.values(localStorage)]") == [0, [KEY]]


# --- an answer ---


def test_streams_an_answer(opened, writer):
    page = opened()
    writer.secs_a_token = SLOW_SECS
    ask(page, until_done=False)
    page.wait_for_selector(".token")
    assert page.get_attribute(".answer", "aria-busy") == "true"
    assert TEXT.startswith(answer_text(page)) and answer_text(page) != TEXT
    page.wait_for_selector(".tools")
    assert answer_text(page) == TEXT
    assert page.get_attribute(".answer", "aria-busy") == "false"
    status = page.text_content(".status")
    assert re.search(rf"^{writer.num_tokens} tokens · [\d.]+ tokens/s · first after [\d.]+ s · seed \d+$", status), status


@pytest.mark.parametrize("with_tokens", [True, False])
def test_text_of_the_model_stays_text(opened, with_tokens):
    page = opened()
    tag = "<img src=x onerror=alert(1)>"
    token = {"token": tag, "bytes": list(tag.encode()), "logprob": -1.0}
    told = chunk(tag)
    if with_tokens:
        told["choices"][0]["logprobs"] = {"content": [{**token, "top_logprobs": [token]}]}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=events(told, "[DONE]"), content_type="text/event-stream"))
    ask(page, "<b>bold</b>")
    page.locator(".text span").hover()
    assert page.locator("#card").is_visible() == with_tokens
    assert page.locator(":is(#talk, #card) img, .question b").count() == 0
    assert answer_text(page) == tag
    assert page.text_content(".question p") == "<b>bold</b>"


def test_the_page_follows_the_text_unless_its_reader_went_up(opened, writer):
    page = opened(viewport={"width": 360, "height": 420})
    below = "() => document.body.scrollHeight - innerHeight - scrollY"
    ask(page)
    page.wait_for_function(f"{below} < 2")
    writer.secs_a_token = SLOW_SECS
    ask(page, until_done=False)
    page.wait_for_selector(".turn:nth-of-type(2) .token")
    page.evaluate("() => scrollTo(0, 0)")
    page.wait_for_selector(".turn:nth-of-type(2) .tools")
    assert page.evaluate("() => scrollY") == 0


def test_completion_shows_prompt_and_continuation_in_one_text(opened, writer):
    page = opened()
    page.check("input[value=complete]", force=True)
    ask(page, "Once upon")
    question, first = page.locator(".question p").bounding_box(), page.locator(".token").first.bounding_box()
    assert first["x"] == pytest.approx(question["x"] + question["width"]) and first["y"] == pytest.approx(question["y"])
    assert answer_text(page) == TEXT
    assert page.input_value("#prompt") == "Once upon"
    ask(page, "Long ago")
    assert page.locator("#complete .turn").count() == 1
    assert answer_text(page) == TEXT
    assert writer.prompts == ["Once upon", "Long ago"]
    page.check("input[value=chat]", force=True)
    assert page.locator("#complete").is_hidden() and page.input_value("#prompt") == ""


def test_settings_are_sent(opened):
    page = opened()
    sent = []
    page.on("request", lambda request: sent.append(request.post_data) if request.post_data else None)
    page.fill("#set-system", "Be brief.")
    page.fill("#set-temperature", "0")
    page.fill("#set-top_k", "40")
    page.fill("#set-seed", "7")
    page.fill("#set-stop_texts", "END\n\\n\\n")
    page.select_option("#set-truncate", "left")
    ask(page, "Hi")
    body = json.loads(sent[-1])
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    wanted = {"temperature": 0, "top_k": 40, "seed": 7, "stop": ["END", "\n\n"], "truncate": "left", "top_p": 0.95}
    assert {name: body[name] for name in wanted} == wanted
    page.fill("#set-top_k", "-1")
    page.fill("#prompt", "Again")
    page.click("#send")
    assert page.locator(".turn").count() == 1
    assert page.evaluate("() => document.activeElement.id") == "set-top_k"


def test_again_edit_and_new(opened, writer):
    page = opened()
    ask(page, "One")
    ask(page, "Two")
    tool(page, "Again").click()
    page.wait_for_selector(".tools")
    assert writer.prompts[-1] == f"user:One\nassistant:{TEXT}\nuser:Two\n"
    tool(page, "Edit").click()
    assert page.input_value("#prompt") == "Two"
    ask(page, "Three")
    assert writer.prompts[-1] == f"user:One\nassistant:{TEXT}\nuser:Three\n"
    page.click("#fresh")
    assert page.locator(".turn").count() == 0
    assert page.locator("#welcome").is_visible()
    ask(page, "Four")
    assert writer.prompts[-1] == "user:Four\n"


def test_copy(opened):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    ask(page)
    tool(page, "Copy").click()
    tool(page, "Copied").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()") == TEXT


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


# --- stopping, and what goes wrong ---


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_reaches_the_writer(opened, writer, how):
    page = opened()
    writer.secs_a_token = SLOW_SECS
    ask(page, until_done=False)
    page.wait_for_selector(".token")
    if how == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    page.wait_for_selector(".tools")
    assert writer.cancelled.wait(5)
    assert "stopped by you" in page.text_content(".status")
    assert TEXT.startswith(answer_text(page)) and answer_text(page) != TEXT
    assert page.locator("#send").is_visible()


TROUBLES = [
    (200, events(chunk("Half")), "The answer broke off: the server ended the stream."),
    (200, events(chunk("Half"), {"error": {"message": "the server is ending"}}), "The server says: the server is ending"),
    (429, json.dumps({"error": {"message": "busy"}}), "The server is busy. Try again in a moment."),
    (400, json.dumps({"error": {"message": "`top_k` is <odd>"}}), "The server says: `top_k` is <odd>"),
    (502, "<html>", "The server says: 502 Bad Gateway"),
    (None, None, "The server cannot be reached."),
]


def test_what_goes_wrong_is_one_line(opened, writer):
    page = opened()
    troubles = iter(TROUBLES)

    def answer(route):
        status, body, _ = next(troubles)
        kind = "text/event-stream" if status == 200 else "application/json"
        if status:
            route.fulfill(status=status, body=body, content_type=kind)
        else:
            route.abort()

    page.route("**/v1/chat/completions", answer, times=len(TROUBLES))
    for status, _, line in TROUBLES:
        ask(page, "One")
        assert page.locator(".answer .trouble").last.text_content() == line
        assert answer_text(page) == ("Half" if status == 200 else "")
    tool(page, "Again").click()
    page.wait_for_selector(".tools")
    assert answer_text(page) == TEXT
    assert page.locator(".answer .trouble").last.is_hidden()
    half = "user:One\nassistant:Half\n"
    assert writer.prompts[-1] == f"{half}{half}user:One\n"  # a question without an answer is not told again


def test_what_was_cut_is_told(opened):
    page = opened()
    body = events(chunk("So", cut={"from": 2, "to": 9}), chunk(" on", slides=3), "[DONE]")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page)
    note = page.text_content(".answer .note")
    assert "tokens 3 to 9 were left out" in note and "3 ×" in note
    assert answer_text(page) == "So on"


def test_without_a_template_chat_is_off_and_says_why(opened, writer):
    writer.can_chat = False
    page = opened()
    assert page.locator("input[value=chat]").is_disabled()
    assert "no chat template" in page.locator("#why:visible").text_content()
    ask(page, "Once upon")
    assert answer_text(page) == TEXT


def test_the_first_answer_fits_a_small_model(opened, writer):
    writer.context = 100
    assert opened().input_value("#set-max_tokens") == "50"


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
    writer.secs_a_token = SLOW_SECS
    ask(page, until_done=False)
    page.wait_for_selector(".token")
    assert page.locator(".text").evaluate("e => getComputedStyle(e, '::after').animationName") == "none"
