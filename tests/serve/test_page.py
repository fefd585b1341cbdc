"""The page at `/` in headless Chromium, against the real application with a writer that knows its text by heart."""

import json
import re

import pytest

from tests.serve import browser
from tests.serve.browser import answer_text, ask, give_key, tool
from tests.serve.running import KEY
from tests.serve.scripted import TEXT, chunk, events

pytestmark = browser.NEEDED
SLOW_SECS = 0.02


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
    page.evaluate("() => document.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', isComposing: true }))")
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


def test_enter_sends_in_chat_alone(opened, writer):
    """Not with Shift, and not while an input method composes; Ctrl+Enter sends in both."""
    page = opened()
    assert page.text_content("#hint") == "Enter sends · Shift + Enter: new line"
    page.fill("#prompt", "你")
    for composing in ("isComposing: true", "keyCode: 229"):
        page.evaluate(
            "() => document.querySelector('#prompt').dispatchEvent("
            f"new KeyboardEvent('keydown', {{ key: 'Enter', bubbles: true, cancelable: true, {composing} }}))"
        )
    page.press("#prompt", "Shift+Enter")
    assert page.input_value("#prompt") == "你\n" and page.locator(".turn").count() == 0
    page.keyboard.type("好")
    page.press("#prompt", "Enter")
    page.wait_for_selector(".tools")
    assert writer.prompts == ["user:你\n好\n"] and page.input_value("#prompt") == ""
    page.check("input[value=complete]", force=True)
    assert page.text_content("#hint") == "Ctrl + Enter sends"
    page.fill("#prompt", "Once")
    page.press("#prompt", "Enter")
    assert page.input_value("#prompt") == "Once\n" and page.locator("#complete .turn").count() == 0
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#complete .tools")
    assert writer.prompts[-1] == "Once\n"


def test_each_mode_has_its_own_temperature(opened):
    page = opened()
    shown = lambda: (page.input_value("#set-temperature"), page.text_content(".row output[for=set-temperature]"))  # noqa: E731
    assert shown() == ("0.2", "0.2")
    page.check("input[value=complete]", force=True)
    assert shown() == ("0.8", "0.8")
    page.fill("#set-temperature", "1.5")
    page.check("input[value=chat]", force=True)
    assert shown() == ("0.2", "0.2")
    page.check("input[value=complete]", force=True)
    assert shown() == ("1.5", "1.5")


@pytest.mark.parametrize("mode", ["chat", "complete"])
def test_a_long_prompt_is_folded(opened, writer, mode):
    """All of it is there and is sent; of a text that goes on its end is seen."""
    page = opened()
    if mode == "complete":
        page.check("input[value=complete]", force=True)
    ask(page, "Short")
    assert page.locator(".fold:visible").count() == 0
    long = "\n".join(f"Line {number}" for number in range(100))
    ask(page, long)
    question, fold = page.locator(f"#{mode} .question").last, page.locator(".fold:visible")
    assert question.bounding_box()["height"] < 200 and fold.get_attribute("aria-expanded") == "false"
    last = page.evaluate(
        f"() => {{ const range = document.createRange(), p = [...document.querySelectorAll('#{mode} .question p')].at(-1);"
        " range.selectNodeContents(p); return [p.parentElement.getBoundingClientRect().bottom, range.getBoundingClientRect().bottom]; }"
    )
    assert (abs(last[0] - last[1]) < 40) == (mode == "complete")
    assert question.locator("p").text_content() == long and long in writer.prompts[-1]
    fold.click()
    height = question.locator("p").bounding_box()["height"]
    assert height > 1000 and fold.get_attribute("aria-expanded") == "true" and fold.text_content() == "Show less"
    fold.click()
    assert question.bounding_box()["height"] < 200


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


# --- stopping, and what goes wrong ---


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_reaches_the_writer(opened, writer, how, caplog):
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
    page.reload()
    assert caplog.records == []  # who leaves is no fault of the server


TOO_LONG = {"error": {"message": "it has 9 tokens", "code": "context_length_exceeded", "param": "messages"}}
TROUBLES = [
    (200, events(chunk("Half")), "The answer broke off: the server ended the stream."),
    (200, events(chunk("Half"), {"error": {"message": "the server is ending"}}), "The server says: the server is ending"),
    (429, json.dumps({"error": {"message": "busy"}}), "The server is busy. Try again in a moment."),
    (400, json.dumps({"error": {"message": "`top_k` is <odd>"}}), "The server says: `top_k` is <odd>"),
    (400, json.dumps(TOO_LONG), "The server says: it has 9 tokens. The setting “Too long a prompt” can cut it."),
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


@pytest.mark.parametrize("kind", [{}, {"viewport": {"width": 360, "height": 700}}], ids=["desktop", "phone"])
def test_too_long_a_prompt_leads_to_its_setting(opened, writer, kind):
    writer.context = 100
    page = opened(**kind)
    ask(page, "x" * 200)
    assert "The setting “Too long a prompt” can cut it." in page.text_content(".answer .trouble")
    tool(page, "Choose what to cut").click()
    assert page.evaluate("() => document.activeElement.id") == "set-truncate" and page.locator("#set-truncate").is_visible()
    page.select_option("#set-truncate", "left")
    tool(page, "Again").click()
    page.wait_for_selector(".tools")
    assert answer_text(page) == TEXT and "left out" in page.text_content(".answer .note")
    assert tool(page, "Choose what to cut").count() == 0


def test_waits_for_the_model_by_itself(opened, service, writer):
    """And says so; the key is asked for when there is somebody to ask."""
    service.writer = None
    page = opened(with_key=False)
    page.wait_for_selector("#trouble:visible")
    assert page.text_content("#trouble").startswith("The model is loading.") and page.locator("#door").is_hidden()
    page.fill("#prompt", "Hello")
    page.press("#prompt", "Enter")
    page.click("#language")
    assert "加载" in page.text_content("#trouble") and page.input_value("#prompt") == "Hello"
    service.writer = writer
    page.wait_for_selector("#door[open]")
    give_key(page)
    assert page.locator("#trouble").is_hidden() and page.input_value("#prompt") == "Hello"


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
    assert page.get_attribute("input[value=chat]", "aria-describedby") == "why"
    assert "no chat template" in page.locator("#why:visible").text_content()
    ask(page, "Once upon")
    assert answer_text(page) == TEXT


def test_the_first_answer_fits_a_small_model(opened, writer):
    writer.context = 100
    assert opened().input_value("#set-max_tokens") == "50"
