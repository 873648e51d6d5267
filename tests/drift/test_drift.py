"""A rehearsal of the SD.Next to come: the stand-in is changed in one way that the contract table allows, the extension starts in it, and
a user works with it. Whatever has changed, the host starts, both models make pictures, the settings are saved, and one sentence says what
is off; or nothing changes for the user, and there is a reason for that.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from demo import server
from sd3deploy.webui.host.contract import BY_NAME
from tests.drift.cases import cases
from tests.drift.rig import LOADED, ROOT

LIMIT_S = 3000  # where the machine has other things to do
SAID = "SD3 Deploy: id=host."
COLUMNS = ("one message", "nothing changes", "silent", "more messages", "broken job", "broken start")


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """Every case with what was seen; "" is that of the host as it is, "alone" the one without the extension."""
    options = {"sd3_text_encoder": LOADED, "diffusers_offload_mode": "balanced"}
    data = server.data_folder(tmp_path_factory.mktemp("drift") / "data", **options)
    given = [{"id": "", "changes": []}, {"id": "alone", "changes": [], "without": True}, *cases()]
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    words = [sys.executable, "-m", "tests.drift.rig", str(data), str(min(4, jobs))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, input=json.dumps(given), capture_output=True, text=True, timeout=LIMIT_S)
    found = {life["id"]: life for life in map(json.loads, done.stdout.splitlines())}
    assert len(found) == len(given), done.stderr[-3000:]
    return found


def plain(text: str) -> str:
    """A line of the log without what differs from start to start."""
    return re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", text)


def loud(life: dict) -> Counter[str]:
    """The lines of the log that somebody notices, but for the sentences about the host."""
    return Counter(plain(text) for level, text in life["log"] if level != "INFO" and SAID not in text)


def noticed(life: dict, *known: dict) -> Counter[str]:
    """What is loud in a life and in none of the known ones as often."""
    usual: Counter[str] = Counter()
    for one in known:
        usual |= loud(one)
    return loud(life) - usual


def reason(life: dict, usual: dict) -> str:
    """Why nothing is said although something has changed; "" where there is no reason."""
    same = all(value == usual[key] for key, value in life.items() if key not in ("id", "changes", "short", "met", "log", "moved"))
    (change,) = life["changes"] if len(life["changes"]) == 1 else ({"name": "", "how": ""},)
    need = BY_NAME.get(change["name"])
    if not same:
        return ""
    if need is None:  # a module
        module = change["name"].removeprefix("module ")
        only = [one for one in BY_NAME.values() if one.place == module]
        return "all that is needed of it does without" if only and all(one.feature is None or one.instead for one in only) else ""
    if need.feature is None:
        return need.lost
    if (need.kind == "patch" or ":Script." in need.name) and change["how"] in ("position", "keyword", "result"):
        return "what is given is handed on, and so is what comes back"
    return f"it is there as {need.instead} too" if need.instead else ""


def judged(life: dict, usual: dict, alone: dict) -> str:
    """The column of the table in which a case is."""
    if "failed" in life or life["model"] != usual["model"]:
        return "broken start" if life.get("failed", "start").startswith(("start", "load")) else "broken job"
    pictures = [life[key][0] for key in ("picture", "picture after the change", "picture of another model")]
    refused = [key for key, value in life.items() if key.startswith(("GET", "POST")) and value >= 500]
    saved = "samples_format=webp" in life["settings"] and all(line in usual["settings"] for line in life["settings"])
    remains = life["patched at the end"] and "unload" not in life["off"]  # what is said to be lost
    if pictures != [1, 1, 1] or refused or not saved or remains:
        return "broken job"
    said = [text for _, text in life["log"] if SAID in text]
    if noticed(life, usual, alone) or len(said) > 1:
        return "more messages"
    if said:
        return "one message"
    return "nothing changes" if reason(life, usual) else "silent"


def test_whatever_changes_costs_one_feature_and_one_sentence(lives, capsys):
    usual, alone = lives[""], lives["alone"]
    assert "failed" not in usual, usual["failed"]
    assert "failed" not in alone, alone["failed"]
    assert not [text for _, text in usual["log"] if SAID in text]
    verdicts = {id: judged(life, usual, alone) for id, life in lives.items() if life["changes"]}
    table = Counter((ways(lives[id]), verdict) for id, verdict in verdicts.items())
    reasons = Counter(reason(lives[id], usual) for id, verdict in verdicts.items() if verdict == "nothing changes")
    with capsys.disabled():
        print(f"\n{shown(table)}\n\nnothing changes, because:")
        for text, count in reasons.most_common():
            print(f"  {count:4}  {text}")
    wrong = {id: verdict for id, verdict in verdicts.items() if verdict not in ("one message", "nothing changes")}
    assert not wrong, "\n".join(explained(id, verdict, lives[id], usual, alone) for id, verdict in wrong.items())


def test_every_change_was_met(lives):
    """A case in which the extension never comes upon what has changed would prove nothing."""
    assert [id for id, life in lives.items() if life["changes"] and not life["met"]] == []


def test_what_is_off_is_named_in_the_report(lives):
    for life in lives.values():
        if any(SAID in text for _, text in life["log"]) and life["off"]:
            assert life["moved"], life["id"]


def ways(life: dict) -> str:
    return life["changes"][0]["how"] if len(life["changes"]) == 1 else "pair"


def shown(table: Counter[tuple[str, str]]) -> str:
    rows = [*sorted({way for way, _ in table}), "together"]
    lines = [f"{'':10}{'cases':>8}" + "".join(f"{column:>17}" for column in COLUMNS)]
    for row in rows:
        counts = [sum(count for (way, column), count in table.items() if column == one and row in (way, "together")) for one in COLUMNS]
        lines.append(f"{row:10}{sum(counts):8}" + "".join(f"{count:17}" for count in counts))
    return "\n".join(lines)


def explained(id: str, verdict: str, life: dict, usual: dict, alone: dict) -> str:
    """What is wrong with a case, to be read by whoever mends it."""
    lines = [f"{verdict}: {id}", *([life["failed"][-800:]] if "failed" in life else [])]
    lines += [f"  {text[:300]}" for _, text in life["log"] if SAID in text]
    lines += [f"  {count} × {text[:300]}" for text, count in noticed(life, usual, alone).items()]
    lines += [f"  {key}: {life.get(key)} instead of {value}" for key, value in usual.items()
              if key not in ("id", "changes", "log", "met") and key in life and life[key] != value]  # fmt: skip
    return "\n".join(lines)
