"""Makes the pictures of the page in the documentation anew: `python -m tests.serve.screenshots [--folder=docs/pictures]`."""

import argparse
import pathlib

from tests.serve import browser
from tests.serve.running import running
from tests.serve.scripted import ScriptedWriter

ENGLISH = (
    "The sea rises twice a day because the Earth turns beneath two bulges of water. The Moon pulls up one of them, on the side that faces "
    "it; the other stays behind on the far side, where the pull is weakest.\n\nA place on the coast passes through both in a little under "
    "twenty-five hours, since the Moon itself has moved on meanwhile. At new and full Moon the Sun helps, and the tides are highest."
)
CHINESE = (
    "海水一天涨落两次，是因为地球在两处隆起的海水之下转动：一处朝向月亮，被月亮的引力拉起；另一处在背面，那里的引力最弱。\n\n"
    "月亮自己也在前进，所以同一片海岸要过将近二十五小时，才会再次经过这两处。"
)
DESKTOP = {"locale": "en-US", "viewport": {"width": 1200, "height": 720}}
PHONE = {"locale": "zh-CN", "viewport": {"width": 390, "height": 760}}
# Name of the file: what is written, the question, the token pointed at, and the kind of device.
PICTURES = {
    "page.png": (ScriptedWriter(ENGLISH), "Why are there two tides a day?", "moved", DESKTOP),
    "page-zh.png": (ScriptedWriter(CHINESE, ("，", "的", "了", "在", "是")), "为什么一天有两次潮汐？", "隆", PHONE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("docs/pictures"))
    folder = parser.parse_args().folder
    with browser.launched() as chromium:
        for name, (writer, question, pointed_at, kind) in PICTURES.items():
            writer.secs_a_token = 0.03
            with running(writer) as server:
                page = chromium.new_page(**kind)
                page.goto(server.url)
                page.wait_for_selector("#model:not(:empty)")
                page.fill("#prompt", question)
                page.press("#prompt", "Control+Enter")
                page.wait_for_selector(".tools")
                page.locator(".token", has_text=pointed_at).first.hover()
                page.screenshot(path=folder / name)
                page.close()
        print(f"written: {', '.join(str(folder / name) for name in PICTURES)}")


if __name__ == "__main__":
    main()
