"""The page: from a key to the chip near Generate, what the page asks while it is typed, and what each answer takes the server."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["run"]

# Measured in the page itself: from the event of the key to the chip that has the new size in it.
WATCH = """
([selector, hints]) => {
  window.sd3Times = [];
  const box = document.querySelector(selector);
  let asked = 0, wanted = '';
  box.addEventListener('input', () => { asked = performance.now(); wanted = `${box.value}×`; }, true);
  new MutationObserver(() => {
    const chip = document.querySelector(hints);
    if (asked && chip && chip.textContent.startsWith(wanted)) {
      window.sd3Times.push(performance.now() - asked);
      asked = 0;
    }
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
}
"""
CHECK = "check?width=1000&height=1000&sampler=DDIM"
ROUTES = {
    "events": "events",
    "check": CHECK,
    "check, two long prompts": f"{CHECK}&prompt={'a%20cat%20' * 60}&negative_prompt=blurry",
    "check, another model": f"{CHECK}&model=sd3.5-large&encoder=fp4",
    "memory": "memory?width=1000&height=1000",
    "status": "status",
}


def run(small: bool = False) -> dict[str, Any]:
    """ms: median, 90th percentile and most. On the stand-in, with the tiny model; nothing else runs on the machine."""
    from demo import server
    from tests.browser import opened

    times = 10 if small else 60
    with tempfile.TemporaryDirectory() as folder:
        host = server.start(server.data_folder(Path(folder) / "data"))
        try:
            with opened(host) as page:
                typed = _typed(page, times)
            return {"key to hint": typed, "answers": {name: _asked(host, route, times) for name, route in ROUTES.items()}}
        finally:
            host.stop()


def _typed(page: Any, times: int) -> dict[str, Any]:
    """Sizes that are no multiple of 16, typed one after the other as by a person: 150 ms between the keys."""
    page.locator("button").filter(has_text="Text").first.click()
    height = page.locator("#txt2img_height input[type=number]").first
    height.fill("1024")
    page.wait_for_timeout(1500)
    page.evaluate(WATCH, ["#txt2img_width input[type=number]", "#sd3-chip-txt2img .sd3-chip-head span"])
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "/sd3/" in request.url else None)
    box = page.locator("#txt2img_width input[type=number]").first
    for number in range(times):
        box.fill("")
        box.press_sequentially(str(1001 + 2 * (number % 200)), delay=150)
        page.wait_for_timeout(300)
    found = page.evaluate("window.sd3Times")
    return _summary(found) | {"hints": len(found), "keys": 4 * times, "requests": len(requests)}


def _asked(host: Any, route: str, times: int) -> dict[str, float]:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        host.get(f"/sdapi/v1/sd3/{route}")
        taken.append((time.perf_counter() - started) * 1000)
    return _summary(taken)


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median ms": statistics.median(ordered), "p90 ms": ordered[int(0.9 * (len(ordered) - 1))], "most ms": ordered[-1]}
