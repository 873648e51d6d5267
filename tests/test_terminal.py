from __future__ import annotations

import textwrap

from hypothesis import given
from hypothesis import strategies as st

from sd3deploy.terminal import columns, pad, wrap

WORDS = st.lists(st.text("abc-/.0", min_size=1, max_size=12), max_size=40).map(" ".join)


@given(WORDS, st.integers(10, 60))
def test_words_are_wrapped_as_by_the_standard_library(text, width):
    expected = textwrap.wrap(text, width, initial_indent="• ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    assert wrap(text, width, "• ", "  ") == (expected or ["•"])


@given(st.text("文本编码器a1 。，/", max_size=120), st.integers(12, 40))
def test_wide_characters_fill_their_lines_and_nothing_is_lost(text, width):
    lines = wrap(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(columns(line) <= width for line in lines if not any(len(word) > 4 for word in line.replace("。", " ").split()))


def test_a_wide_character_takes_two_columns():
    assert columns("显存 8 GB") == 9
    assert pad("显存", 6) + "|" == "显存  |"
    assert wrap("需要更多显存。请选择 T5 FP4。", 12) == ["需要更多显", "存。请选择", "T5 FP4。"]
