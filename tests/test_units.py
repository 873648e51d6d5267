from __future__ import annotations

import pytest

from sd3deploy import units


@pytest.mark.parametrize(
    ("bytes", "beside", "expected"),
    [
        (9_524_621_312, 0, "9.5 GB"),
        (168_000_000, 0, "0.2 GB"),
        (400_000, 0, "0.4 MB"),
        (40_000, 0, "40 kB"),
        (300, 0, "<1 kB"),
        (0, 0, "0 GB"),
        (400_000, 60 * 10**9, "<0.1 GB"),
        (60 * 10**9, 400_000, "60.0 GB"),
        (80_000_000, 9 * 10**9, "0.1 GB"),
        (40_000, 800_000, "<0.1 MB"),
        (0, 800_000, "0 MB"),
    ],
)
def test_a_size_is_written_in_the_unit_of_the_larger_one_and_never_as_nothing_where_there_is_something(bytes, beside, expected):
    assert units.size(bytes, beside) == expected
