"""The text in a picture: how values are written into it, and how they are read out of it again."""

import json
import re

ENTRY = re.compile(r'([\w ]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')  # the name of an entry is letters, digits and spaces, no more
FIRST = ("steps: ", "seed: ", "width: ", "height: ", "sampler: ", "size: ", "cfg scale: ", "pipeline: ")  # one of these ends the prompts
NEGATIVE = "negative prompt: "


def quote(value):
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(letter in text for letter in ",\n:") else text


def unquote(text):
    try:
        return json.loads(text) if text.startswith('"') and text.endswith('"') else text
    except ValueError:
        return text


def parse(infotext):
    """Names → values; whole text is the prompt where it holds no entries. What looks like a number or a truth comes back as one."""
    if not isinstance(infotext, str) or not infotext.strip():
        return {}
    lower = infotext.lower()
    begins = [at for word in FIRST if (at := lower.find(word)) >= 0]
    if not begins:
        return {"Prompt": infotext}
    prompts, entries = infotext[: min(begins)], infotext[min(begins) :]
    at = prompts.lower().find(NEGATIVE)
    negative = prompts[at + len(NEGATIVE) :].strip() if at >= 0 else ""
    found = {"Prompt": prompts[: at if at >= 0 else None].strip() or None, "Negative prompt": negative or None}
    for name, raw in ENTRY.findall(entries):
        name, text = name.strip(), unquote(raw.strip()).strip(" ,\n")
        size = re.fullmatch(r"(\d+)x(\d+)", text)
        found[name] = _value(text)
        if size:
            found |= {f"{name}-1": int(size[1]), f"{name}-2": int(size[2])}
    return found


def _value(text):
    if text.replace(".", "", 1).isdigit():
        return float(text) if "." in text else int(text)
    return {"True": True, "False": False}.get(text, text)
