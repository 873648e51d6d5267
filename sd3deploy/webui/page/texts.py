"""The sentences that the page itself says (javascript/), and what it needs to say those that gradio has built in another language."""

from __future__ import annotations

from sd3deploy import guards, messages
from sd3deploy.encoders import choices, source
from sd3deploy.webui.jobs.forecast import MODES
from sd3deploy.webui.jobs.override import AS_SET
from sd3deploy.webui.page import language

__all__ = ["texts"]

_SAID = "page."
_BUILT = ("panel.", "setting.sd3_", "encoder.", "action.")  # ids of what is on the page from its beginning


def texts() -> dict[str, object]:
    """For the page that has just been opened: the language, id → sentence, sentence as it was built → as it should be read, and value of
    a setting that is shown by another name → that name.
    """
    language.adopt()
    english = messages.catalogue("en")
    said = {id: messages.sentence(id) for id in english if id.startswith(_SAID)}
    fixed = [id for id in english if id.startswith(_BUILT) and "{" not in english[id] and not id.endswith((".one", ".other"))]
    with messages.speaking(language.built()):
        before = {id: messages.sentence(id) for id in fixed}
        lines = [choices.label(choice) for choice in choices.CHOICES]
    labels = {before[id]: messages.sentence(id) for id in fixed if before[id] != messages.sentence(id)}
    labels |= {line: choices.label(choice) for line, choice in zip(lines, choices.CHOICES, strict=True) if line != choices.label(choice)}
    names = {choice.name: choice.shown for choice in choices.CHOICES} | {kind: source.shown(kind) for kind in source.KINDS}
    names |= {mode: messages.text(f"panel.mode.{mode}") for mode in (*guards.MODES, *MODES)} | {AS_SET: messages.text("panel.as-set")}
    shown = {value: name for value, name in names.items() if name != value}
    return {"language": messages.language(), "texts": said, "labels": labels, "names": shown}
