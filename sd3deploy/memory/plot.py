"""A run as a picture: memory over time, with its phases and what the estimate had said."""

from __future__ import annotations

from typing import Any

from sd3deploy import messages
from sd3deploy.memory.monitor import Run

__all__ = ["figure"]

_COLOURS = {"load": "#94a3b8", "prepare": "#cbd5e1", "encode": "#60a5fa", "denoise": "#a78bfa", "decode": "#34d399"}
_LINES = (("used", "#9ca3af", 1.0), ("reserved", "#fb923c", 1.2), ("allocated", "#ef4444", 1.8))


# Of the systems and their usual packages; matplotlib's own font has no Chinese.
_FONTS = ("Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "SimHei")


def figure(run: Run | None, usable: int = 0) -> Any:
    """A matplotlib figure, readable on a dark and on a light page, in English where no font has the characters of another language.
    usable: bytes, a line that must not be crossed; 0: none.
    """
    from matplotlib import font_manager, rc_context

    there = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in _FONTS if name in there]
    readable = fonts or messages.text("memory.total").isascii()
    with messages.speaking(messages.language() if readable else "en"), rc_context({"font.sans-serif": [*fonts, "DejaVu Sans"]}):
        return _drawn(run, usable)


def _drawn(run: Run | None, usable: int) -> Any:
    from matplotlib.figure import Figure

    made = Figure(figsize=(8, 3.2), dpi=100, facecolor="#ffffff", layout="constrained")
    axes = made.add_subplot()
    axes.set_ylabel("GB")
    axes.set_xlabel("s")
    if run is None or not run.times:
        axes.text(0.5, 0.5, messages.text("memory.plot.none"), ha="center", va="center", transform=axes.transAxes)
        return made
    on_device = any(reading.used or reading.allocated for reading in run.readings)
    lines = _LINES if on_device else (("ram", "#2563eb", 1.8),)
    for name, colour, width in lines:
        values = [getattr(reading, name) / 1e9 for reading in run.readings]
        axes.plot(run.times, values, color=colour, linewidth=width, label=messages.text(f"memory.plot.{name}"))
    _phases(axes, run)
    if usable:
        axes.axhline(usable / 1e9, color="#b91c1c", linewidth=1, linestyle="--", label=messages.text("memory.plot.usable"))
    axes.set_xlim(0, max(run.times[-1], 0.1))
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])  # a flat line would lie on the frame
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize="small")
    axes.set_title(messages.text("memory.plot.title", run=run.title), fontsize="medium", loc="left", pad=14, parse_math=False)
    return made


def _phases(axes: Any, run: Run) -> None:
    """A band for each stretch of a phase, with what the estimate had said for it as a dotted line."""
    expected = run.facts.get("expected", {})
    # Estimates are about the model; what the server takes besides shows in RAM.
    base = 0 if run.facts.get("on_device", True) else max(0, run.level().ram - run.facts.get("weights", 0))
    starts = [(at, phase) for n, (at, phase, _) in enumerate(run.marks) if n == 0 or run.marks[n - 1][1] != phase]
    named = set()
    for number, (begun, phase) in enumerate(starts):
        ended = starts[number + 1][0] if number + 1 < len(starts) else run.times[-1]
        axes.axvspan(begun, ended, color=_COLOURS.get(phase, "#cbd5e1"), alpha=0.18, linewidth=0)
        if (ended - begun) > run.times[-1] * 0.06 and phase not in named:
            axes.text(begun, 1.01, messages.text(f"memory.phase.{phase}"), fontsize="x-small", transform=axes.get_xaxis_transform())
            named.add(phase)
        if expected.get(phase):
            axes.hlines((base + expected[phase]) / 1e9, begun, ended, color="#111827", linestyle=":", linewidth=1.4)
