"""What is said of a job while it is being described: each finding and the memory in a few words, then at length, with their buttons.

    guards.Outcome, memory's Verdict and Change → Hints

Pure: the page asks with each key that is pressed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sd3deploy import button, messages, units
from sd3deploy.button import Button
from sd3deploy.guards import Action, Finding, Job, Outcome
from sd3deploy.guards.job import Prompt
from sd3deploy.guards.number import number
from sd3deploy.memory.verdict import Change, Verdict

__all__ = ["KINDS", "SEVERITIES", "Hint", "Kind", "Lacking", "Severity", "hints"]

Kind = Literal["size", "area", "sampler", "prompt", "attention", "steps", "guidance", "encoder", "memory"]
KINDS: tuple[Kind, ...] = ("size", "area", "sampler", "prompt", "attention", "steps", "guidance", "encoder", "memory")

# ok: nothing to do. advice: runs as asked, but not well. change: will be changed. refuse: will not be made, or will not fit.
Severity = Literal["ok", "advice", "change", "refuse"]
SEVERITIES: tuple[Severity, ...] = ("ok", "advice", "change", "refuse")

_SEVERITY: dict[Action, Severity] = {"tell": "advice", "apply": "change", "refuse": "refuse"}
_MEMORY: dict[str, Severity] = {"fits": "ok", "tight": "advice", "no": "refuse"}


@dataclass(frozen=True)
class Hint:
    """kind: of the control that it is about. text: at most a few words, in the language that is spoken. sentence: the same at length, with
    what can be done; buttons: that with one press.
    """

    kind: Kind
    severity: Severity
    text: str
    sentence: str = ""
    buttons: tuple[Button, ...] = ()


@dataclass(frozen=True)
class Lacking:
    """A text encoder that can not be had. name: of it. why: a sentence. instead: the name of the one that the picture is made with."""

    name: str
    why: str
    instead: str


def hints(
    asked: Job, outcome: Outcome, judged: Verdict | None = None, change: Change | None = None, lacking: Lacking | None = None
) -> tuple[Hint, ...]:
    """In the order of the findings, the memory last. asked: the job as it was before the guards. judged: None where the memory was not
    looked at; where the device does not tell its memory there is no hint about it either. change: what would make it fit. lacking: an
    encoder that is asked for and can not be had; whether it would fit does not matter then.
    """
    return (*_findings(asked, outcome), *(_lacking(lacking) if lacking else _memory(judged, change)))


def _findings(asked: Job, outcome: Outcome) -> Iterator[Hint]:
    long = _long(asked)
    for done, found in outcome.decided:
        kind, say = _KINDS.get(found.id, (None, None))
        if kind is None or say is None:  # a guard that is younger than this file
            continue
        for text in say(_Case(found, done, asked, outcome.job, long)):
            sentence = messages.joined(found.told(done), found.advised(done))
            yield Hint(kind, _SEVERITY[done], text, sentence, found.buttons)


def _lacking(one: Lacking) -> Iterator[Hint]:
    sentence = messages.joined(one.why, messages.text("hint.encoder.instead", name=one.instead))
    yield Hint("encoder", "change", messages.text("hint.encoder", name=one.name), sentence)


def _memory(judged: Verdict | None, change: Change | None) -> Iterator[Hint]:
    if judged is not None and judged.answer in _MEMORY:
        text = messages.text("hint.memory", need=units.size(judged.need, judged.usable), usable=units.size(judged.usable, judged.need))
        sentence = messages.joined(judged.sentence, _remedy(judged, change))
        yield Hint("memory", _MEMORY[judged.answer], text, sentence, button.change(change.fields, change.steps) if change else ())


def _remedy(judged: Verdict, change: Change | None) -> str:
    """What makes it fit, or that nothing does; "" where it fits."""
    return change.sentence if change else messages.text("memory.nothing") if judged.answer == "no" else ""


@dataclass(frozen=True)
class _Case:
    """A finding, what is done about it, and the job before and after. long: the prompts that no finding was about yet."""

    found: Finding
    done: Action
    asked: Job
    made: Job
    long: Iterator[Prompt]

    def say(self, changed: str, left: str, **values: object) -> Iterator[str]:
        """The sentence `changed` where it is mended, else `left`."""
        yield messages.text(changed if self.done == "apply" else left, **values)


# What each finding is called in a few words.


def _resized(case: _Case, left: str) -> Iterator[str]:
    made = f"{case.found.change['width']}×{case.found.change['height']}"
    limits = {"grid": case.asked.model.grid, "limit": case.asked.model.limit}
    return case.say("hint.size", left, asked=_size(case.asked), made=made, **limits)


def _impossible(case: _Case) -> Iterator[str]:
    yield messages.text("hint.size.refuse", asked=_size(case.asked))


def _default(case: _Case) -> Iterator[str]:
    yield messages.text("hint.size.default", made=f"{case.found.change['width']}×{case.found.change['height']}")


def _hires(case: _Case) -> Iterator[str]:
    yield messages.text("hint.size.hires", made=f"{case.found.change['hires_width']}×{case.found.change['hires_height']}")


def _area(case: _Case) -> Iterator[str]:
    made, trained = case.made, case.made.model.trained**2
    sides = [int(number(side) or default) for side, default in zip((made.width, made.height), made.default, strict=True)]
    yield messages.text("hint.area", area=f"{sides[0] * sides[1] / 1e6:.2g}", trained=f"{trained / 1e6:.2g}")


def _sampler(case: _Case) -> Iterator[str]:
    changed = case.found.change
    name = next(getattr(case.asked, field) for field in ("sampler", "hires_sampler") if field in changed)
    return case.say("hint.sampler.change", "hint.sampler.tell", name=name)


def _steps(case: _Case) -> Iterator[str]:
    return case.say("hint.steps.change", "hint.steps.tell", steps=_plain(case.asked.steps), usual=case.found.change["steps"])


def _guidance(case: _Case) -> Iterator[str]:
    usual = f"{number(case.found.change['guidance']):g}"
    return case.say("hint.guidance.change", "hint.guidance.tell", guidance=_plain(case.asked.guidance), usual=usual)


def _guidance_turbo(case: _Case) -> Iterator[str]:
    yield messages.text("hint.guidance.turbo", guidance=_plain(case.asked.guidance))


def _guidance_none(case: _Case) -> Iterator[str]:
    yield messages.text("hint.guidance.none", guidance=_plain(case.asked.guidance))


def _cut(case: _Case) -> Iterator[str]:
    return _prompt(case, "hint.prompt.cut", "hint.prompt.cut-negative")


def _pieces(case: _Case) -> Iterator[str]:
    return _prompt(case, "hint.prompt.pieces", "hint.prompt.pieces-negative")


def _prompt(case: _Case, id: str, negative: str) -> Iterator[str]:
    if (prompt := next(case.long, None)) is not None:
        tokens, limit = (prompt.clip, prompt.clip_limit) if prompt.t5 is None else (prompt.t5, prompt.t5_limit)
        yield messages.text(negative if prompt.negative else id, tokens=tokens, limit=limit)


def _long(job: Job) -> Iterator[Prompt]:
    """The prompts of which not everything is read, in the order in which the prompt guard finds them."""
    for prompt in job.prompts:
        tokens, limit = (prompt.clip, prompt.clip_limit) if prompt.t5 is None else (prompt.t5, prompt.t5_limit)
        if tokens > limit and (prompt.t5 is None or job.prompt_attention != "xhinker"):
            yield prompt


def _xhinker(case: _Case) -> Iterator[str]:
    return case.say("hint.prompt.xhinker-change", "hint.prompt.xhinker-tell")


def _attention(case: _Case) -> Iterator[str]:
    return case.say("hint.attention.change", "hint.attention.tell")


_KINDS: dict[str, tuple[Kind, Callable[[_Case], Iterator[str]]]] = {
    "size.not-multiple": ("size", lambda case: _resized(case, "hint.size.grid")),
    "size.too-large": ("size", lambda case: _resized(case, "hint.size.limit")),
    "size.too-thin": ("size", _impossible),
    "size.no-number": ("size", _impossible),
    "size.default": ("size", _default),
    "size.hires": ("size", _hires),
    "size.hires-impossible": ("size", lambda case: iter([messages.text("hint.size.hires-impossible")])),
    "size.far": ("area", _area),
    "size.small": ("area", _area),
    "sampler.not-flow": ("sampler", _sampler),
    "steps.none": ("steps", _steps),
    "guidance.absurd": ("guidance", _guidance),
    "guidance.turbo": ("guidance", _guidance_turbo),
    "guidance.none": ("guidance", _guidance_none),
    "prompt.t5-cut": ("prompt", _cut),
    "prompt.t5-most": ("prompt", _cut),
    "prompt.clip-cut": ("prompt", _cut),
    "prompt.clip-pieces": ("prompt", _pieces),
    "prompt.xhinker": ("prompt", _xhinker),
    "attention.other": ("attention", _attention),
    "attention.setting": ("attention", _attention),
}


def _size(job: Job) -> str:
    return f"{_plain(job.width)}×{_plain(job.height)}"


def _plain(value: Any) -> str:
    found = number(value)
    return str(value)[:20] if found is None else f"{found:g}" if abs(found) < 1e5 else f"{found:.0f}"[:20]
