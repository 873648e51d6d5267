"""What was found, for the screen and for a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from sd3deploy import messages, units
from sd3deploy.device import Device
from sd3deploy.encoders.choices import Choice
from sd3deploy.quality.beside import Measured
from sd3deploy.quality.pictures import Pictures
from sd3deploy.quality.prompts import LENGTH, Prompt
from sd3deploy.terminal import columns

__all__ = ["COLUMNS", "Result", "Row"]

COLUMNS = ("size", "error", "worst", "cosine", "lowest", "encode")


@dataclass(frozen=True)
class Row:
    """One choice. bytes: of its encoder. measured: for each prompt of the result, in that order."""

    choice: Choice
    bytes: int
    measured: tuple[Measured, ...]

    @property
    def error(self) -> float:
        """The mean of the relative errors."""
        return mean(one.error for one in self.measured)

    @property
    def worst(self) -> float:
        """The largest of them."""
        return max(one.error for one in self.measured)

    @property
    def cosine(self) -> float:
        """The mean."""
        return mean(one.cosine for one in self.measured)

    @property
    def lowest(self) -> float:
        """The smallest cosine."""
        return min(one.cosine for one in self.measured)

    @property
    def encode_s(self) -> float:
        """Seconds for a prompt, the median."""
        return median(one.seconds for one in self.measured)

    @property
    def cells(self) -> tuple[str, ...]:
        """For COLUMNS."""
        numbers = (f"{self.error:.4f}", f"{self.worst:.4f}", f"{self.cosine:.5f}", f"{self.lowest:.5f}")
        return units.size(self.bytes), *numbers, f"{self.encode_s:.3f} s"


@dataclass(frozen=True)
class Result:
    """source: name of the weights; form: as they are stored. rows: the smallest error first. left_out: name of a choice → why.
    lost: why not all of it is kept, as a sentence for who measures; "" where it is. pictures: where they were asked for.
    """

    source: str
    form: str
    fingerprint: str
    versions: Mapping[str, str | None]
    device: Device
    prompts: Sequence[Prompt]
    rows: Sequence[Row]
    left_out: Mapping[str, str]
    lost: str = ""
    pictures: Pictures | None = None

    @property
    def title(self) -> str:
        """What was measured, where, and with how much."""
        where = {"device": self.device.name or self.device.torch, "dtype": self.device.compute_dtype}
        return messages.text("quality.title", source=self.source, form=self.form, count=len(self.prompts), length=LENGTH, **where)

    @property
    def omissions(self) -> list[str]:
        """Why choices are not in the table, a sentence for each reason."""
        names: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            names.setdefault(reason, []).append(name)
        return [messages.text("quality.left-out", names=", ".join(some), reason=reason) for reason, some in names.items()]

    @property
    def lines(self) -> list[str]:
        """For a terminal."""
        heads = ["", *(messages.text(f"quality.column.{name}") for name in COLUMNS)]
        table = [heads, *([row.choice.name, *row.cells] for row in self.rows)]
        lines = [self.title, "", *_aligned(table), *(["", *self.omissions] if self.left_out else [])]
        return [*lines, "", self.pictures.title, "", *_aligned(self.pictures.table), *self.pictures.notes] if self.pictures else lines

    def report(self) -> dict[str, Any]:
        """As JSON-able values: bytes, seconds. choices: id → its numbers, with those of each prompt in the order of `prompts`."""
        rows = {
            row.choice.id: {
                "name": row.choice.name,
                "bytes": row.bytes,
                "error": {"mean": row.error, "worst": row.worst},
                "cosine": {"mean": row.cosine, "worst": row.lowest},
                "encode_s": row.encode_s,
                "prompts": [asdict(one) for one in row.measured],
            }
            for row in self.rows
        }
        return {
            "source": self.source,
            "form": self.form,
            "fingerprint": self.fingerprint,
            "versions": dict(self.versions),
            "device": {"name": self.device.name, "backend": self.device.backend, "compute": self.device.compute_dtype},
            "length": LENGTH,
            "prompts": [{"text": prompt.text, "tokens": prompt.tokens} for prompt in self.prompts],
            "choices": rows,
            "left_out": dict(self.left_out),
            **({"pictures": self.pictures.report()} if self.pictures else {}),
        }


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines in columns: the first to the left, numbers to the right."""
    widths = [max(columns(line[place]) for line in table) for place in range(len(table[0]))]
    gaps = [[" " * (width - columns(cell)) for cell, width in zip(line, widths, strict=True)] for line in table]
    return [
        "  ".join([line[0] + gap[0], *(space + cell for space, cell in zip(gap[1:], line[1:], strict=True))])
        for line, gap in zip(table, gaps, strict=True)
    ]
