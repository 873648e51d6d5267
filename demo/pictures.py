"""The pictures of the pages, taken from the page of the demo: `python3 dev.py pictures`.

A server without bitsandbytes and without a package index gives the messages, one with everything the rest. Each picture is taken in the
light and the dark theme, in every language that has pages, at two pixels for one, and written to docs/pictures/ with a palette of 256
colours. What is on them is what the page says: nothing is drawn in.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo import environment, server
from demo.__main__ import CACHE, Steps
from sd3deploy import tiny_sd3

__all__ = ["LANGUAGES", "MOST", "PICTURES", "THEMES", "files", "main"]

DOCS = server.ROOT / "docs" / "pictures"
LANGUAGES = {"en": "en-US", "zh": "zh-CN"}  # code of a language → what a browser calls it
THEMES = ("light", "dark")
MOST = 150_000  # bytes of a picture
ENCODER = "T5 NF4"
CHOSEN, SHOWN = "T5 Q4", "T5 BF16"  # in the frames: one that needs no package; the last of the list that is to be seen
PICTURES = ("apply", "hints", "panel", "settings", "warning")
SIZE = {"width": 1000, "height": 1000}  # one that has to be mended
LARGE = {"width": 2050, "height": 2050}  # one that is not what the model was trained on, too

# gradio and the page move things softly; a picture of that would be another one each time.
STILL = "*, *::before, *::after { transition: none !important; animation: none !important; caret-color: transparent !important; }"
VIEWPORT: Any = {"width": 1600, "height": 3000}  # px; so high that nothing is scrolled, and nothing is behind the messages at its foot
NARROW: Any = {"width": 1200, "height": 3000}  # for what would else be two words at each end of a line
FRAME: Any = {"width": 600, "height": 5000}  # higher than the page: a list opens downwards, and nothing is behind a message
GAP = 12  # px around a frame
PANEL = "#script_txt2img_sd3_deploy_"
Box = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py pictures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", metavar="DIR", type=Path, default=DOCS, help="where to write them (default: docs/pictures/)")
    args = parser.parse_args()
    languages = [language for language in LANGUAGES if language == "en" or has_chinese()]
    if len(languages) < len(LANGUAGES):
        print("No font here has Chinese characters: the Chinese pictures stay as they are. Install one, such as fonts-noto-cjk.")
    steps = Steps()
    with steps.step("Make a tiny SD3 and a host without bitsandbytes"):
        if not tiny_sd3.cached().exists():  # in a process of its own: its imports are not ours
            subprocess.run([sys.executable, "-m", "sd3deploy.tiny_sd3"], cwd=server.ROOT, check=True, capture_output=True)
        without = environment.linked(CACHE / "pictures-venv", without=["bitsandbytes"])
    args.docs.mkdir(exist_ok=True)
    made: list[Path] = []
    for title, take, words in (
        ("messages", messages, {"python": without, "PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0"}),
        ("a choice", apply, {}),
        ("the panel and the settings", panel, {}),
    ):
        with steps.step(f"Take pictures of {title}"):
            host = server.start(server.data_folder(CACHE / "pictures"), **words)
            try:
                for language in languages:
                    for theme in THEMES:
                        with opened(host, language, theme) as page:
                            for name, picture in take(host, page):
                                made.append(written(picture, file(args.docs, name, language, theme)))
            finally:
                host.stop()
    for path in sorted(made):
        print(f"  {path.relative_to(server.ROOT) if path.is_relative_to(server.ROOT) else path}  {path.stat().st_size:,} bytes")
    return 0


def file(folder: Path, name: str, language: str, theme: str) -> Path:
    """Where a picture lies; English is the language that its name does not tell."""
    return folder / f"{name}-{theme}{'' if language == 'en' else f'.{language}'}.png"


def files(folder: Path = DOCS) -> set[Path]:
    """All that are made."""
    return {file(folder, name, language, theme) for name in PICTURES for language in LANGUAGES for theme in THEMES}


# What is taken


def messages(host: server.Host, page: Any) -> Iterator[tuple[str, bytes]]:
    """An encoder that needs a package that can not be downloaded, and a size that is mended."""
    host.set(sd3_text_encoder="Host default")
    fill(page, **SIZE)
    host.set(sd3_text_encoder=ENCODER)
    page.locator(".sd3-toast.sd3-error .sd3-action").wait_for(timeout=90_000)
    page.locator("#txt2img_generate").click()
    page.locator(".sd3-toast.sd3-info .sd3-action").wait_for(timeout=90_000)
    toasts = page.locator("#sd3-toasts")
    still(page)
    yield "warning", page.screenshot(clip=around(toasts.bounding_box(), 16))


def apply(host: server.Host, page: Any) -> Iterator[tuple[str, bytes]]:
    """A text encoder is chosen, applied, and ready: three frames, one below the other."""
    page.set_viewport_size(FRAME)
    settings(page)
    page.locator(".sd3-choices .sd3-verdict:not(:empty)").first.wait_for()  # nothing moves from now on
    still(page)
    field, submit = page.locator("#setting_sd3_text_encoder"), page.locator("#settings_submit")
    field.locator("input").click()
    entry = field.locator(f'li[data-value="{CHOSEN}"]')
    entry.hover()
    page.wait_for_timeout(500)
    last = field.locator(f'li[data-value="{SHOWN}"]').bounding_box()
    top = field.bounding_box()["y"]  # what is left and right of the list is half of what lies behind it
    frames = [page.screenshot(clip={**last, "y": top, "height": last["y"] + last["height"] - top})]
    entry.click()
    submit.hover()
    page.wait_for_timeout(500)
    frames.append(page.screenshot(clip=submit.bounding_box()))
    submit.click()
    toast = page.locator(".sd3-toast.sd3-success", has_text=CHOSEN)
    toast.wait_for(state="attached", timeout=90_000)
    page.locator("#sd3-toasts .sd3-fold").click()  # on a page as narrow as this messages are one line
    still(page)
    frames.append(page.screenshot(clip=toast.bounding_box()))
    yield "apply", below(frames)
    host.set(sd3_text_encoder="Host default")  # for the next page


def panel(host: server.Host, page: Any) -> Iterator[tuple[str, bytes]]:
    """The panel, open, with a size that will be mended; what is said near Generate; the table of text encoders in the settings."""
    if host.get("/sdapi/v1/sd3/status")["encoder"] != ENCODER:
        host.set(sd3_text_encoder=ENCODER)
    fill(page, **SIZE)
    page.locator(f"{PANEL}panel > .label-wrap").click()
    page.locator(f"{PANEL}job .sd3-will").first.wait_for()
    page.locator(f"{PANEL}memory .sd3-bar").first.wait_for()
    still(page)
    yield "panel", page.screenshot(clip=around(page.locator(f"{PANEL}panel").bounding_box(), 8))
    fill(page, **LARGE)
    chip = page.locator("#sd3-chip-txt2img")
    chip.locator(".sd3-chip-row").nth(1).wait_for(state="attached")
    still(page)
    chip.locator(".sd3-chip-head").hover()
    chip.locator(".sd3-chip-more").wait_for()
    parts = (page.locator("#txt2img_generate"), chip.locator(".sd3-chip-head"), chip.locator(".sd3-chip-more"))
    yield "hints", page.screenshot(clip=around(together(*(part.bounding_box() for part in parts)), 8))
    settings(page)
    page.locator(".sd3-choices .sd3-verdict:not(:empty)").first.wait_for()
    page.set_viewport_size(NARROW)
    still(page)
    yield "settings", page.screenshot(clip=around(page.locator(".sd3-choices").bounding_box(), 8))


# How


@contextmanager
def opened(host: server.Host, language: str, theme: str) -> Iterator[Any]:
    """The page of a host in a fresh browser of that language and theme."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            words: dict[str, Any] = {"locale": LANGUAGES[language], "color_scheme": theme, "reduced_motion": "reduce"}
            page = browser.new_page(viewport=VIEWPORT, device_scale_factor=2, **words)
            page.add_init_script(_seen(host))
            page.goto(f"{host.url}/?__theme={theme}")
            ready(page)
            yield page
        finally:
            browser.close()


def ready(page: Any) -> None:
    """Wait until all of the page is there, and let nothing on it move."""
    page.wait_for_function("window.opts && Object.keys(window.opts).length > 0 && window.sd3deploy", timeout=120_000)
    page.locator("#txt2img_generate").wait_for(timeout=120_000)
    page.add_style_tag(content=STILL)


def settings(page: Any) -> None:
    """Open the section of the extension."""
    page.locator("#tabs > .tab-nav > button").get_by_text("System", exact=True).click()
    page.locator("#settings .tab-nav button").get_by_text("SD3 Deploy", exact=True).first.click()


def _seen(host: server.Host) -> str:
    """For the page: what has happened before is no news."""
    known = host.get("/sdapi/v1/sd3/events")
    last = max((event["seq"] for event in known["events"]), default=0)
    return f"sessionStorage.setItem('sd3-server', '{known['server']}'); sessionStorage.setItem('sd3-seen', '{last}');"


def chromium() -> str:
    """The path of the browser. Ends the program where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    return found or sys.exit("No Chromium: install the package chromium of the operating system.")


def has_chinese() -> bool:
    """Whether a font has Chinese characters, as far as fontconfig knows; Windows and macOS bring one."""
    if not shutil.which("fc-list"):
        return os.name == "nt" or sys.platform == "darwin"
    return bool(subprocess.run(["fc-list", ":lang=zh-cn"], capture_output=True, text=True).stdout.strip())


def fill(page: Any, **fields: int) -> None:
    """Type into the fields of the job."""
    for name, value in fields.items():
        box = page.locator(f"#txt2img_{name} input[type=number]")
        box.fill(str(value))
        box.blur()


def still(page: Any) -> None:
    """Nothing has the mouse or the focus, everything that was asked for is there."""
    page.mouse.move(2, 2)
    page.evaluate("document.activeElement && document.activeElement.blur()")
    page.wait_for_timeout(1500)


def together(*boxes: Box) -> Box:
    """The smallest box that holds them all."""
    left, top = min(box["x"] for box in boxes), min(box["y"] for box in boxes)
    right, bottom = max(box["x"] + box["width"] for box in boxes), max(box["y"] + box["height"] for box in boxes)
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def around(box: Box, margin: float) -> Box:
    """The box with some px more on each side."""
    return {"x": box["x"] - margin, "y": box["y"] - margin, "width": box["width"] + 2 * margin, "height": box["height"] + 2 * margin}


def below(frames: list[bytes]) -> bytes:
    """One picture of several, each as it is, in the middle of the widest, on the colour of the first one's corner."""
    from PIL import Image

    images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    gap, width = 2 * GAP, max(image.width for image in images)
    height = sum(image.height + gap for image in images) + gap
    whole, top = Image.new("RGB", (width + 2 * gap, height), images[0].getpixel((0, 0))), gap
    for image in images:
        whole.paste(image, (gap + (width - image.width) // 2, top))
        top += image.height + gap
    whole.save(data := io.BytesIO(), "png")
    return data.getvalue()


def written(picture: bytes, path: Path) -> Path:
    """The picture with a palette. Ends the program where it is still too large for a page."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, "png", optimize=True)
    if len(small.getvalue()) > MOST:
        sys.exit(f"{path} would have {len(small.getvalue()):,} bytes; at most {MOST:,} are wanted: show less on it.")
    path.write_bytes(small.getvalue())
    return path


if __name__ == "__main__":
    sys.exit(main())
