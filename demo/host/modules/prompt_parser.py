"""Weights in a prompt. The stand-in knows (words:1.2), (words) and BREAK, which has the weight -1."""

import re

re_part = re.compile(r"\(([^():]+)(?::([\d.]+))?\)|\b(BREAK)\b")


def parse_prompt_attention(text):
    """[[words, weight], …]"""
    found, end = [], 0
    for match in re_part.finditer(text):
        if match.start() > end:
            found.append([text[end : match.start()], 1.0])
        words, weight, cut = match.groups()
        found.append(["BREAK", -1] if cut else [words, float(weight or 1.1)])
        end = match.end()
    if end < len(text) or not found:
        found.append([text[end:], 1.0])
    return found
