"""Encoders: each choice's bytes, its errors of weights and output, its encode and load times, on T5-XXL's shapes with random weights.

Two kinds of weights: with outlier channels as trained models have them, and heavy-tailed (Student's t, five degrees of freedom). FP4 and
NF4 are measured with both scales of blocks: "absmax" is bitsandbytes' own, bit for bit, "best" is ours. Beside them, in the same run: what
SD.Next's own quantizer (SDNQ) and transformers with bitsandbytes make of the same weights. Full shapes take half an hour on a CPU, and the
second kind has 6 of 24 blocks there; `--small` is a T5 of a thousandth of the size. Each row has a process of its own (`--small`: one
process for all). Errors are relative to float32 of the same weights, over all blocks, for three prompts of 256 tokens.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench._memory import Peak
from bench._process import answer
from bench._ways import WAYS, Job, device, source
from bench._weights import FULL, KINDS, SMALL, make, orderly, prompts, streamed, weights

__all__ = ["FULL", "ROWS", "Row", "judged", "make", "run"]

BLOCKS = 2  # of an encoder, when its latency is measured: all of them take the same time
COST = 1.5  # of quantizing with the best scale, as a ratio to absmax
RECOMMENDED = ("q4", "q5", "q6", "q8", "bf16")
SDNQ_SHARE = 0.75  # of SDNQ's bytes, which leave `wo` in 16 bit


@dataclass(frozen=True)
class Row:
    """choice: id of an encoder. scale: how blocks in 4 bit are scaled; "" where there are none or not our own. way: of those of others,
    by which it is made; then the choice is one of its.
    """

    choice: str
    scale: str = ""
    way: str = ""

    @property
    def name(self) -> str:
        """For the table."""
        return " ".join(filter(None, (self.way, self.choice, self.scale)))


ROWS = (
    *(Row(choice) for choice in RECOMMENDED),
    *(Row(choice, scale) for choice in ("fp4", "nf4") for scale in ("absmax", "best")),
    *(Row(choice) for choice in ("int8", "fp8")),
    *(Row(choice, way="SDNQ") for choice in ("uint4", "uint4 Hadamard")),
    Row("nf4", way="transformers + bitsandbytes"),
)


def run(small: bool = False, rows: Sequence[Row] = ROWS, kinds: Sequence[str] = KINDS, times: int | None = None) -> dict[str, Any]:
    """{"rows": {kind: {row: {…}}}, "cost_of_the_best_scale": {choice: ratio}, "choices": {id: its bytes and error as the table of choices
    has them}, "wanted": {line: {…, "met": bool}}}.

    Of each row: "bytes" resident, "weight_error", "output_errors" of the three prompts and their mean, "encode_vs_bf16" (median of
    `times` pairs), "load_s" from the source, growth of the process at its peak.
    """
    times = times or 3
    found: dict[str, Any] = {}
    cost: dict[str, Any] = {}
    for kind in kinds:
        shape = SMALL if small else FULL if kind == "outliers" else FULL | {"num_layers": 6}
        with orderly(), weights(shape, kind) as folder, tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as place:
            ask = partial(_ask, None if small else Path(place))
            known = {"folder": str(folder), "file": str(Path(place) / "reference.npy"), "times": times}
            ask(known | {"task": "reference"})
            found[kind] = {row.name: ask(known | {"task": "row", "row": asdict(row)}) for row in rows}
            if kind == "outliers":
                choices = [choice for choice in ("fp4", "nf4") if Row(choice, "best") in rows]
                cost = {choice: _cost(ask, known, choice, 1 if small else 2) for choice in choices}
    result = {"rows": found, "cost_of_the_best_scale": cost, "choices": _table(found)}
    return result | {"wanted": judged(result)}


def _cost(ask: Callable[[dict[str, Any]], dict[str, Any]], known: dict[str, Any], choice: str, turns: int) -> dict[str, Any]:
    """Whole loads from the source by turns; of the shortest, because whatever else the machine does only adds."""
    seconds: dict[str, list[float]] = {"absmax": [], "best": []}
    for _ in range(turns):
        for scale, taken in seconds.items():
            taken.append(ask(known | {"task": "load", "row": {"choice": choice, "scale": scale}})["load_s"])
    return {**seconds, "ratio": round(min(seconds["best"]) / min(seconds["absmax"]), 2)}


def _ask(place: Path | None, task: dict[str, Any]) -> dict[str, Any]:
    """A task in a process of its own, whose temporary files lie in `place`, or in this one (None)."""
    started = time.perf_counter()
    result = answer("bench.encoders", task, place) if place else _done(task)
    print(f"  … {task['task']} {task.get('row', '')}, {time.perf_counter() - started:.0f} s: {result}", file=sys.stderr, flush=True)
    return result


# In the process that measures


def _done(task: dict[str, Any]) -> dict[str, Any]:
    folder = Path(task["folder"])
    if task["task"] == "reference":
        return _reference(folder, Path(task["file"]))
    row = Row(**task["row"])
    if task["task"] == "load":
        return {"load_s": _loaded(folder, row)[1]}
    return _measured(folder, row, Path(task["file"]), task["times"])


def _reference(folder: Path, file: Path) -> dict[str, Any]:
    """Write what float32 gives for the prompts."""
    import numpy
    import torch

    on = device().torch
    encoder = streamed(folder, torch.float32, on)
    started = time.perf_counter()
    numpy.save(file, _encode(encoder, prompts(encoder.config.vocab_size).to(on)).cpu().numpy())
    return {"s": round(time.perf_counter() - started, 1)}


def _measured(folder: Path, row: Row, reference: Path, times: int) -> dict[str, Any]:
    import numpy
    import torch

    from sd3deploy.encoders.measure import measure

    with Peak() as peak:
        encoder, seconds = _loaded(folder, row)
    size = measure(encoder)
    wrong = _weight_error(folder, encoder)  # before the first use, in which bitsandbytes repacks what it computes on some processors
    tokens = prompts(encoder.config.vocab_size).to(device().torch)
    expected = torch.from_numpy(numpy.load(reference))
    errors = [_relative(one, other) for one, other in zip(_encode(encoder, tokens).cpu(), expected, strict=True)]
    return {
        "bytes": size.bytes,
        "bytes_16bit": size.bytes_16bit,
        "smaller_percent": round(100 * (1 - size.bytes / size.bytes_16bit), 1),
        "linear4bit": size.linear4bit,
        "linears": size.linears,
        "wo_quantized": size.wo_quantized,
        "weight_error": round(wrong, 4),
        "output_errors": [round(error, 4) for error in errors],
        "output_error": round(statistics.mean(errors), 4),
        "encode_vs_bf16": round(_latency(folder, encoder, tokens[2:], times), 2),
        "load_s": seconds,
        "peak": peak.resident,
        "peak_anonymous": peak.anonymous,
    }


def _loaded(folder: Path, row: Row) -> tuple[Any, float]:
    """The encoder, ready on its device, and the seconds from the source to there."""
    import torch

    on = device()
    for tiny in (True, False):  # first a tiny one: what is imported at the first use belongs to no load
        with tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as other:
            if tiny:
                make(Path(other), SMALL)
            started = time.perf_counter()
            encoder = _made(other if tiny else str(folder), row).to(on.torch).eval()
            if on.torch != "cpu":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
    return encoder, round(seconds, 2)


def _made(folder: str, row: Row) -> Any:
    from sd3deploy.encoders import choices
    from sd3deploy.encoders.assemble import assemble
    from sd3deploy.encoders.load import load
    from sd3deploy.encoders.quantize import quantize
    from sd3deploy.encoders.recipe import Recipe
    from sd3deploy.encoders.weights import open_weights

    if row.way:
        return WAYS[row.way](Job(row.way, row.choice, folder), {})
    on, choice, place = device(), choices.find(row.choice), source(folder)
    if not row.scale:
        return load(choice, place, on)
    return assemble(quantize(open_weights(place), Recipe(choice, on.compute_dtype, row.scale), on), on.torch)


def _encode(encoder: Any, tokens: Any) -> Any:
    """All prompts at once, as float32."""
    import torch

    with torch.no_grad():
        return encoder(tokens)[0].float()


def _relative(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


def _latency(folder: Path, encoder: Any, tokens: Any, times: int) -> float:
    """Time of the first blocks relative to the same blocks in bfloat16, by turns in one process; median of the pairs after a first one.
    On a CPU that of one thread while it computes: two threads wait for each other at each operation, for whatever else the machine does.
    """
    import torch

    plain = streamed(folder, torch.bfloat16, device().torch, BLOCKS)
    encoder.encoder.block = encoder.encoder.block[:BLOCKS]
    clock = time.process_time if tokens.device.type == "cpu" else time.perf_counter

    def seconds(one: Any) -> float:
        started = clock()
        _encode(one, tokens)
        if tokens.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return statistics.median([seconds(encoder) / seconds(plain) for _ in range(times + 1)][1:])
    finally:
        torch.set_num_threads(threads)


def _weight_error(folder: Path, encoder: Any) -> float:
    """Of the linear layers of the first, the middle and the last block, all together."""
    import torch
    from safetensors import safe_open

    place = folder / "text_encoder_3"
    index = json.loads((place / "model.safetensors.index.json").read_text())["weight_map"]
    last = len(encoder.encoder.block) - 1
    wrong = whole = 0.0
    for number in sorted({0, last // 2, last}):
        for name, module in encoder.encoder.block[number].named_modules():
            key = f"encoder.block.{number}.{name}.weight"
            if key in index and hasattr(module, "in_features"):
                with safe_open(place / index[key], "pt") as file:
                    expected = file.get_tensor(key).float()
                with torch.no_grad():
                    wrong += float(((_dequantized(module).float().cpu() - expected) ** 2).sum())
                whole += float((expected**2).sum())
    return (wrong / whole) ** 0.5


def _dequantized(module: Any) -> Any:
    """The weight that a layer of any kind computes with."""
    import torch

    from sd3deploy.encoders.grouped import grouped, rotate

    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if weight.dtype is torch.int8 and hasattr(weight, "SCB"):  # bitsandbytes' own layer; its scale is the largest of the row
        scale = weight.SCB if weight.SCB is not None else module.state.SCB
        return weight.data.float() * scale.float()[:, None] / 127
    if hasattr(module, "kind"):  # of grouped.py
        form = grouped(module.kind)
        return rotate(form.unpack(weight, module.in_features, torch.float32), form.padded(module.in_features))[:, : module.in_features]
    if hasattr(module, "sdnq_dequantizer"):
        return copy.deepcopy(module).dequantize().weight
    return weight.float() * module.scale.float() if hasattr(module, "scale") else weight


# What is wanted of it


def _table(found: dict[str, Any]) -> dict[str, str]:
    """As in sd3deploy/encoders/choices.py: bytes, and the error of what is loaded by default."""
    rows = found.get("outliers", {})
    return {
        row.choice: f"{rows[row.name]['bytes']:_}, {rows[row.name]['output_error']:.3f}"
        for row in ROWS
        if row.scale != "absmax" and not row.way and row.name in rows
    }


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """Each promise as a line: what was found, what is wanted, whether that is met. Lines whose rows were not measured are left out."""
    lines: dict[str, Any] = {}
    for choice in ("fp4", "nf4"):
        pairs = {
            kind: (rows[f"{choice} best"], rows[f"{choice} absmax"])
            for kind, rows in result["rows"].items()
            if f"{choice} best" in rows and f"{choice} absmax" in rows
        }
        cases = {f"{kind}, weights": (ours["weight_error"], own["weight_error"]) for kind, (ours, own) in pairs.items()}
        for kind, (ours, own) in pairs.items():
            errors = zip(ours["output_errors"], own["output_errors"], strict=True)
            cases |= {f"{kind}, output of prompt {number}": both for number, both in enumerate(errors, 1)}
        if cases:
            better = all(ours < own for ours, own in cases.values())
            same = all(ours["bytes"] == own["bytes"] for ours, own in pairs.values())
            lines[f"{choice}_best_scale_is_better_everywhere"] = {"best_and_absmax": cases, "same_bytes": same, "met": better and same}
        if choice in result["cost_of_the_best_scale"]:
            ratio = result["cost_of_the_best_scale"][choice]["ratio"]
            lines[f"{choice}_best_scale_costs"] = {"ratio": ratio, "wanted_at_most": COST, "met": ratio <= COST}
    for kind, rows in result["rows"].items():
        if "q5" in rows and "SDNQ uint4" in rows:
            ours, sdnq = rows["q5"], rows["SDNQ uint4"]
            share = ours["bytes"] / sdnq["bytes"]
            lines[f"q5_vs_sdnq_{kind}"] = {
                "errors": (ours["output_error"], sdnq["output_error"]),
                "bytes_ratio": round(share, 3),
                "wanted_at_most": SDNQ_SHARE,
                "met": ours["output_error"] < sdnq["output_error"] and share <= SDNQ_SHARE,
            }
        if recommended := [choice for choice in RECOMMENDED if choice in rows]:
            beaten = {choice: by for choice in recommended if (by := _better(rows, choice))}
            lines[f"recommended_on_the_pareto_front_{kind}"] = {"choices": recommended, "beaten": beaten, "met": not beaten}
    return lines


def _better(rows: dict[str, Any], choice: str) -> list[str]:
    """The rows that take no more bytes with no more error, and less of one of them."""
    own = rows[choice]["bytes"], rows[choice]["output_error"]
    others = {name: (row["bytes"], row["output_error"]) for name, row in rows.items()}
    return [name for name, other in others.items() if other != own and other[0] <= own[0] and other[1] <= own[1]]


def main(arguments: Iterable[str]) -> None:
    print(json.dumps(_done(json.loads(next(iter(arguments))))))


if __name__ == "__main__":
    main(sys.argv[1:])
