"""The tables about text encoders, made from the code, from docs/numbers.json and from docs/recommendations.txt.

Sizes and errors are those of `CHOICES`, which `python3 dev.py bench encoders` measures; times are in docs/numbers.json alone, in both
languages at once (`bench encoders`, `bench load`; all of it with its machines in bench/RESULTS.md).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from publish.markdown import plain, table
from sd3deploy.encoders.choices import CHOICES, Choice
from sd3deploy.encoders.forms import FORMS

__all__ = ["brief", "forms", "gpus", "loading", "numbers"]

_DOCS = Path(__file__).resolve().parent.parent / "docs"
_WORDS = {
    "en": {
        "choice": "choice",
        "size": "T5-XXL takes",
        "what": "what it is",
        "needs": "needs",
        "bytes": "bytes",
        "error": "output error",
        "time": "encode time, BF16 = 1: {on}",
        "host": "as SD.Next decides",
        "capability": "{names}; on CUDA compute capability {least}",
        "bf16": "bfloat16 in hardware",
        "fp8": "float8 tensors: not on Apple GPUs or DirectML (which SD.Next had until 2026-08)",
        "gpu": "GPU memory",
        "take": "take",
        "form": "form of a layer",
        "example": "for example",
        True: "read",
        False: "refused by name",
    },
    "zh": {
        "choice": "选项",
        "size": "T5-XXL 占用",
        "what": "说明",
        "needs": "要求",
        "bytes": "字节",
        "error": "输出误差",
        "time": "编码时间（BF16 = 1）：{on}",
        "host": "由 SD.Next 决定",
        "capability": "{names}；CUDA 计算能力 {least}",
        "bf16": "硬件支持 bfloat16",
        "fp8": "float8 张量：Apple GPU 和 DirectML（SD.Next 在 2026-08 之前支持）不支持",
        "gpu": "显存",
        "take": "选择",
        "form": "一层的形式",
        "example": "例如",
        True: "可读取",
        False: "按名称拒绝",
    },
}  # fmt: skip


def brief(language: str) -> str:
    """What to choose from: name, size, a sentence, what it needs."""
    words = _WORDS[language]
    rows = [[choice.shown, _size(choice, language), plain(choice.sentence), _needs(choice, language)] for choice in CHOICES]
    return table([words["choice"], words["size"], words["what"], words["needs"]], rows)


def numbers(language: str) -> str:
    """What was measured of each."""
    words, measured = _WORDS[language], _measured()["encode"]
    heads = [words["choice"], words["bytes"], words["error"], *(words["time"].format(on=one["on"][language]) for one in measured)]
    rows = []
    for choice in CHOICES:
        if choice.error is not None:
            times = [f"{one['relative'][choice.id]:.1f}" if choice.id in one["relative"] else "" for one in measured]
            rows.append([choice.shown, f"{choice.bytes:,}", f"{choice.error:.3f}", *times])
    return table(heads, rows)


def forms(language: str) -> str:
    """The forms in which weights of T5 lie on disk."""
    words = _WORDS[language]
    return table([words["form"], "", words["example"]], [[form.title, words[form.read], form.example] for form in FORMS])


def gpus(language: str) -> str:
    """What is recommended for each size of a GPU with the host's default offload mode: the same for each model, or a ValueError."""
    words, names = _WORDS[language], {choice.id: choice.shown for choice in CHOICES}
    lines = (_DOCS / "recommendations.txt").read_text(encoding="utf-8").splitlines()
    found = set()
    for number, line in enumerate(lines):
        sizes = re.findall(r"\d+ GB", line)
        if len(sizes) > 3:  # the head of a model
            mode = next(later for later in lines[number:] if later.startswith("balanced"))
            taken = dict(zip(sizes, re.split(r" {2,}", mode)[1:], strict=True))
            found.add(tuple((size, taken[size]) for size in sizes if int(size.removesuffix(" GB")) <= 24))
    if len(found) != 1:
        raise ValueError(f"the models differ in what is recommended for them: {found}")
    (row,) = found
    return table([words["gpu"], *(size for size, _ in row)], [[words["take"], *(names[id] for _, id in row)]])


def loading(language: str) -> str:
    """How long it takes to load one, beside other ways."""
    load = _measured()["load"]
    return table(load["heads"][language], [[row["what"][language], *row["cells"]] for row in load["rows"]])


def _measured() -> dict[str, Any]:
    return json.loads((_DOCS / "numbers.json").read_text(encoding="utf-8"))


def _size(choice: Choice, language: str) -> str:
    return _WORDS[language]["host"] if choice.bytes is None else f"{choice.bytes / 1e9:.1f} GB" if choice.bytes else "0"


def _needs(choice: Choice, language: str) -> str:
    words, names = _WORDS[language], ", ".join(choice.groups)
    if choice.capability:
        return words["capability"].format(names=names, least=".".join(map(str, choice.capability)))
    return words["bf16"] if choice.bf16 else words["fp8"] if choice.fp8 else names
