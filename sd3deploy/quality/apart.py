"""Measures in a process of its own, beside a running server: `python -m sd3deploy.quality.apart FOLDER JSON`.

Its memory goes back as a whole when it ends, it can be ended at any time, and what it takes is not taken for that of a picture. While it is
told to hold on it computes nothing and keeps its memory.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sd3deploy import messages
from sd3deploy.child import Child, answer, follow_parent
from sd3deploy.device import Device
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.hub import Repository, Spec
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.errors import EncoderError, Sd3Error
from sd3deploy.quality import measuring, page, prompts

__all__ = ["Order", "in_child", "main"]

_HOLD, _GO = b"h", b"g"


@dataclass(frozen=True)
class Order:
    """What to measure: every choice that can be. file: with the prompts. places, cache: as of measuring.measured."""

    source: Source
    file: Path
    places: Sequence[Path]
    cache: Cache
    device: Device

    def dump(self) -> str:
        """As one line that `load` reads."""
        source, arguments = self.source, dict(self.source.arguments)
        config = arguments.pop("config", None)
        return json.dumps(
            {
                "name": source.name,
                "place": source.place,
                "file": str(source.file) if source.file else None,
                "arguments": {key: value for key, value in arguments.items() if isinstance(value, (str, bool))},
                "config": config.to_dict() if config is not None else None,
                "remote": [str(source.remote.spec), *source.remote.caches] if source.remote else None,
                "prompts": str(self.file),
                "places": [str(place) for place in self.places],
                "cache": [str(self.cache.folder), self.cache.limit],
                "device": asdict(self.device),
            }
        )

    @classmethod
    def load(cls, text: str) -> Order:
        """What `dump` has written."""
        import transformers

        said = json.loads(text)
        arguments = said["arguments"]
        if said["config"] is not None:
            arguments["config"] = transformers.T5Config.from_dict(said["config"])
        remote = Repository(Spec.parse(said["remote"][0]), said["remote"][1:], offline=True) if said["remote"] else None
        source = Source(said["name"], said["place"], Path(said["file"]) if said["file"] else None, arguments, remote)
        capability = said["device"].pop("capability")
        device = Device(**said["device"], capability=tuple(capability) if capability else None)
        cache = Cache(Path(said["cache"][0]), said["cache"][1])
        return cls(source, Path(said["prompts"]), [Path(place) for place in said["places"]], cache, device)


def in_child(
    order: Order,
    progress: Callable[[float, int, int, str], None],
    cancelled: Callable[[], bool],
    held: Callable[[], bool],
) -> dict[str, Any]:
    """Measure. held: asked ten times a second whether to hold on. Returns title, omissions with lost, report as of Result, and page.
    Raises Stopped a moment after `cancelled` says yes, Sd3Error for what can not be measured; what was measured before that is kept.
    """
    holds = False

    def tick() -> None:
        nonlocal holds
        if cancelled():
            raise Stopped("quality.stopped")
        if holds != (holds := held()):
            child.send(_HOLD if holds else _GO)

    with Child(["-m", "sd3deploy.quality.apart", os.getcwd(), order.dump()]) as child:
        for value in child.values(tick):
            if "progress" in value:
                progress(*value["progress"])
            elif "error" in value:
                raise EncoderError(value["error"], **value["values"])
            elif "done" in value:
                return value["done"]
        if child.code in (-9, 137):  # Linux ends so who takes too much memory
            raise EncoderError("quality.killed")
        raise EncoderError("quality.ended", code=child.code, error=next(iter(child.said.strip().splitlines()[-1:]), ""))


def main(folder: str, text: str) -> None:
    """In the child: measure what `text` says, an Order, and answer in lines. folder: from which its paths are meant."""
    os.chdir(folder)
    messages.set_language(os.environ.get("SD3DEPLOY_LANGUAGE", "en"))
    going = threading.Event()
    going.set()
    follow_parent(lambda heard: going.clear() if heard.endswith(_HOLD) else going.set())
    write = answer()
    logging.disable(logging.WARNING)

    def go_on() -> bool:
        going.wait()
        return False

    def went_on(*at: object) -> None:
        write({"progress": at})

    try:
        order = Order.load(text)
        go_on()
        weights = measuring.opened(order.source)
        result = measuring.measured(weights, (), prompts.read(order.file), order.places, order.cache, order.device, went_on, go_on)
        omissions = [*result.omissions, *filter(None, [result.lost])]
        write({"done": {"title": result.title, "omissions": omissions, "report": result.report(), "page": page.page(result)}})
    except Sd3Error as error:
        values = {name: value if isinstance(value, int) else str(value) for name, value in error.values.items()}
        write({"error": error.id, "values": values})


if __name__ == "__main__":
    main(*sys.argv[1:])
