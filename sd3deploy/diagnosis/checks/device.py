"""What computes: the driver, whether this torch can use it, and whether it really multiplies, in 16 bit and in 4."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd3deploy import deps, messages, units
from sd3deploy.child import Child
from sd3deploy.device import Device
from sd3deploy.diagnosis.checks.context import Context
from sd3deploy.diagnosis.checks.result import Outcome, Say, conclude
from sd3deploy.diagnosis.checks.rules import seen
from sd3deploy.diagnosis.checks.runner import crashed, ending, known
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.diagnosis.rule import Advice
from sd3deploy.encoders import choices
from sd3deploy.memory.capacity import Capacity

__all__ = ["Facts", "check", "gather", "judge"]


@dataclass(frozen=True)
class Facts:
    """cards: GPUs that the driver or the system knows of; driver: its version. build: of torch. device, capacity: None where torch did not
    get so far. plain, four_bit: tracebacks of what failed, "" where it went well; quantizes: bitsandbytes is installed and was tried.
    crash: exit code of a process that ended before it was done; said: the end of its stderr.
    """

    cards: tuple[str, ...] = ()
    driver: str = ""
    build: Mapping[str, Any] = field(default_factory=dict)
    device: Device | None = None
    capacity: Capacity | None = None
    plain: str = ""
    quantizes: bool = False
    four_bit: str = ""
    crash: int | None = None
    said: str = ""


def check(context: Context, say: Say) -> Outcome:
    """The step: 4 to 10 s."""
    facts = gather(context, say)
    context.held["device"] = facts
    failed, warned = judge(facts, context)
    told = {
        "cards": list(facts.cards),
        "driver": facts.driver,
        **{f"torch_{name}" if name != "torch" else name: value for name, value in facts.build.items()},
        **({} if facts.device is None else {"device": facts.device.torch, "backend": facts.device.backend, "name": facts.device.name}),
        **({} if facts.device is None else {"capability": facts.device.capability, "bf16": facts.device.bf16, "fp8": facts.device.fp8}),
        **({} if facts.capacity is None else {"total": facts.capacity.total, "usable": facts.capacity.usable}),
        **({} if facts.capacity is None else {"ram": facts.capacity.ram_total, "ram_usable": facts.capacity.ram_usable}),
        "encoders": [one.id for one in choices.suitable(facts.device) if one.bytes is not None] if facts.device else [],
        "bitsandbytes": context.installed.version("bitsandbytes"),
    }
    made = conclude(_sentence(facts), failed, warned, told)
    if made.state == "ok" and not facts.quantizes and _wants_bitsandbytes(context):
        lacks = messages.text("checks.device.without", names="bitsandbytes")
        return Outcome("warning", messages.joined(made.message, lacks), messages.text("checks.device.without.remedy"), facts=told)
    return made


def gather(context: Context, say: Say) -> Facts:
    """Ask the driver, then torch in a process of its own."""
    say(0.0, "")
    cards, driver = _cards()
    quantizes = bool(context.installed.version("bitsandbytes"))
    found: dict[str, Any] = {}
    words = [context.device, context.backend, *(["4bit"] * quantizes)]

    def tick() -> None:
        say(min(0.95, (1 + len(found)) / 8), "torch")

    with Child(["-m", "sd3deploy.diagnosis.checks.probe", "device", *words]) as child:
        for value in child.values(tick):
            errors = {f"{name}_error": value["error"] for name in ("plain", "4bit") if name in value}
            found.update({"build": value} if "torch" in value else {**value, **errors})
        whole = {"plain", "4bit"} if quantizes else {"plain"}
        crash, said = (None, "") if whole <= found.keys() else (child.code, child.said)
    device, capacity = found.get("device"), found.get("capacity")
    return Facts(
        cards,
        driver,
        found.get("build", {}),
        Device(**{**device, "capability": device["capability"] and tuple(device["capability"])}) if device else None,
        Capacity(**capacity) if capacity else None,
        found.get("plain_error", ""),
        quantizes,
        found.get("4bit_error", ""),
        crash,
        said,
    )


def judge(facts: Facts, context: Context) -> tuple[list[Finding], list[Finding]]:
    """What fails, and what should only be known."""
    idle = list(_torch(facts, context))
    failed = idle if facts.driver else []
    if facts.crash is not None and not failed:
        tried = "bitsandbytes" if facts.capacity else "torch"  # what was tried last
        failed.append(crashed(tried, facts.crash, facts.said, context))
    if facts.plain and not failed:
        failed += known(facts.plain, context) or [_broken("device-broken", facts, facts.plain)]
    elif facts.four_bit:
        failed += known(facts.four_bit, context) or [_broken("bitsandbytes-native", facts, facts.four_bit)]
    warned = [] if facts.driver else idle  # a processor with graphics of its own counts as a card of AMD too
    chosen = choices.find(context.encoder)
    if facts.device and (reason := choices.unsuitable(chosen, facts.device)):
        instead = [other.shown for other in choices.suitable(facts.device) if other.bytes]
        warned.append(seen("encoder-unsuitable", {"reason": reason, "instead": ", ".join(instead) or choices.NONE.shown}))
    return failed, warned


def _torch(facts: Facts, context: Context) -> Iterator[Finding]:
    """Whether torch can use the card that is there; a user who asks for the CPU gets it."""
    build = facts.build
    if not facts.cards or not build or build["available"] or context.backend in ("openvino", "ipex", "xpu", "directml"):
        return
    words = {"card": facts.cards[0], "torch": build["torch"], "driver": facts.driver, "cuda": build["cuda"] or ""}
    words["executable"] = sys.executable
    if build["cuda"] is None and build["hip"] is None:
        if facts.device is None or facts.device.backend == "cpu":
            flag = "--use-rocm" if not facts.driver else "--use-cuda"
            yield seen("torch-without-gpu", {**words, "flag": flag}, Advice(package="torch"))
    else:
        yield seen("driver-unusable", words)


def _broken(id: str, facts: Facts, text: str) -> Finding:
    last = text.strip().splitlines()[-1][:300]
    name = facts.device.name if facts.device else ""
    words = {"device": name, "error": last, "executable": sys.executable, "torch": facts.build.get("torch", "")}
    return seen(id, words, Advice(package="bitsandbytes" if id == "bitsandbytes-native" else "torch"), ending(text))


def _wants_bitsandbytes(context: Context) -> bool:
    """And it will come: else the check of the packages has said it."""
    return bool(choices.find(context.encoder).groups) and not context.groups and deps.has_wheel()


def _sentence(facts: Facts) -> str:
    device, capacity = facts.device, facts.capacity
    if device is None or capacity is None:
        return ""
    words = {"name": device.name, "backend": device.backend, "torch": facts.build.get("torch", ""), "dtype": device.compute_dtype}
    if capacity.total:
        said = messages.text("checks.device.ok", **words, usable=units.size(capacity.usable), total=units.size(capacity.total))
    else:
        said = messages.text("checks.device.ok-ram", **words, usable=units.size(capacity.ram_usable), total=units.size(capacity.ram_total))
    if device.product_dtype != device.compute_dtype:
        said = messages.joined(said, messages.text("device.emulates"))
    return messages.joined(said, messages.text("checks.device.four-bit") if facts.quantizes and not facts.four_bit else "")


def _cards() -> tuple[tuple[str, ...], str]:
    """Names of the GPUs that the system has a driver for, and the version of NVIDIA's; both empty where there is none."""
    if tool := shutil.which("nvidia-smi"):
        try:
            command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is one that torch will complain about
            return (), ""
        rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line] if done.returncode == 0 else []
        if rows:
            return tuple(name.strip() for name, _, _ in rows), rows[0][2].strip()
    return (("AMD GPU",), "") if Path("/dev/kfd").exists() else ((), "")
