"""The Stable Diffusion 3 models on this disk: which there are, whether they are whole, what they lack, whether they fit this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd3deploy import messages, units
from sd3deploy.diagnosis.checks import weights
from sd3deploy.diagnosis.checks.context import Context
from sd3deploy.diagnosis.checks.result import Outcome, Say, conclude
from sd3deploy.diagnosis.checks.rules import seen
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.diagnosis.rule import Advice
from sd3deploy.encoders import choices
from sd3deploy.memory import sizes

__all__ = ["CLIPS", "T5", "Model", "check", "examine", "found", "search"]

CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"
_MODULES = ("transformer", *CLIPS, T5, "vae")
_TOKENIZERS = {
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "tokenizer_2": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "tokenizer_3": (("tokenizer.json",), ("spiece.model",)),
}
_DEPTH = 6  # folders below a models folder: Diffusers/models--org--name/snapshots/revision/model_index.json
_SINGLE = 1_000_000  # bytes: smaller files hold no model
_MARK = "joint_blocks.0."  # of the transformer's tensors in a single file (comfyanonymous/ComfyUI, sd3_medium.safetensors)
_IN_FILE = {"first_stage_model.": "vae", "text_encoders.clip_l.": CLIPS[0], "text_encoders.clip_g.": CLIPS[1], "text_encoders.t5xxl.": T5}


@dataclass(frozen=True)
class Model:
    """One model. path: its folder, or its file. name: as the user knows it. bytes: on disk. parts: those that are there.
    failed: findings with which it can not be loaded, warned: those with which it can. foreign: it is no Stable Diffusion 3.
    """

    path: Path
    name: str
    bytes: int = 0
    parts: tuple[str, ...] = ()
    failed: tuple[Finding, ...] = ()
    warned: tuple[Finding, ...] = ()
    foreign: bool = False

    @property
    def complete(self) -> bool:
        """It can be loaded, with or without T5."""
        return not self.failed and not self.foreign

    def report(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"name": self.name, "path": str(self.path), "bytes": self.bytes, "parts": list(self.parts), "complete": self.complete}


def check(context: Context, say: Say) -> Outcome:
    """The step: headers are read, no weights."""
    say(0.0, "")
    models = found(context, say)
    facts = {"models": [one.report() for one in models], "folders": [str(folder) for folder in context.models]}
    if not models:
        return Outcome("ok", messages.text("checks.files.none"), messages.remedy("checks.files.none"), facts=facts)
    good = [one for one in models if one.complete]
    failed = [wrong for one in models for wrong in one.failed]
    warned = [wrong for one in models for wrong in one.warned]
    if good and not any(one.path == context.model for one in models if not one.foreign):  # of several one is enough
        failed, warned = [], [*failed, *warned]
    if good:
        warned += _memory(good[0], context)
    names = ", ".join(f"{one.name} ({units.size(one.bytes)})" for one in good)
    return conclude(messages.text("checks.files.ok", names=names), failed, warned, facts)


def found(context: Context, say: Say = lambda fraction, text: None) -> list[Model]:
    """The model that is meant; without one, or where that is no SD3, all that lie in the models folders. Looked for once in a run."""
    if "models" not in context.held:
        meant = [examine(context.model)] if context.model is not None else []
        others = search(context.models, say) if not meant or meant[0].foreign else ()
        context.held["models"] = [*meant, *others]
    return context.held["models"]


def search(folders: Iterable[Path], say: Say = lambda fraction, text: None) -> Iterator[Model]:
    """Every SD3 model below the folders, each once."""
    been: set[Path] = set()
    for top in folders:
        for folder, files in _walk(top, been):
            say(0.3, str(folder))
            if folder.name.startswith("models--"):
                if lost := _unfinished(folder):
                    yield lost
            elif "model_index.json" in files and _is_sd3(folder):
                yield examine(folder)
            else:
                yield from _singles(folder, files)


def examine(path: Path) -> Model:
    """One model, whatever is wrong with it."""
    if path.is_dir():
        return _folder(path) if _is_sd3(path) or not (path / "model_index.json").is_file() else _foreign(path)
    if path.suffix == ".safetensors":
        weight = weights.read_header(path)
        return _single(weight) if not weight.names or any(_MARK in key for key in weight.names) else _foreign(path)
    return Model(path, path.name, failed=(seen("file-missing", {"file": path, "model": path.name}),))


def _foreign(path: Path) -> Model:
    return Model(path, path.name, warned=(seen("not-sd3", {"model": path.name}),), foreign=True)


def _walk(top: Path, been: set[Path]) -> Iterator[tuple[Path, list[str]]]:
    for folder, folders, files in os.walk(top, followlinks=True):
        here = Path(folder)
        real = here.resolve()
        if real in been:
            folders.clear()
            continue
        been.add(real)
        if len(here.relative_to(top).parts) >= _DEPTH or "model_index.json" in files or here.name == "blobs":
            folders.clear()
        folders[:] = sorted(name for name in folders if name != ".locks")
        yield here, sorted(files)


def _is_sd3(folder: Path) -> bool:
    return "StableDiffusion3" in str(_json(folder / "model_index.json").get("_class_name", ""))


def _singles(folder: Path, files: list[str]) -> Iterator[Model]:
    for name in files:
        path = folder / name
        if not name.endswith(".safetensors") or "-of-" in name:
            continue
        weight = weights.read_header(path)
        if weight.state == "pointer" or (weight.state == "truncated" and not weight.names):
            if sizes.guess(path.stem):  # nothing but its name tells what it was to be
                yield _single(weight)
        elif weight.bytes >= _SINGLE and any(_MARK in key for key in weight.names):
            yield _single(weight)


def _single(weight: weights.Weights) -> Model:
    path = weight.path
    lacks = tuple(_damage(weight, path.name))
    there = {part for key in weight.names for prefix, part in _IN_FILE.items() if key.startswith(prefix)}
    parts = tuple(part for part in _MODULES if part == "transformer" or part in there)
    if not lacks and (missing := [part for part in CLIPS if part not in there]):
        lacks = (seen("encoder-missing", {"model": path.name, "parts": ", ".join(missing)}),)
    return Model(path, path.name, weight.bytes, parts, lacks)


def _folder(path: Path) -> Model:
    name = _name(path)
    index = _json(path / "model_index.json")
    failed: list[Finding] = []
    warned: list[Finding] = []
    if not index:
        return Model(path, name, failed=(seen("file-missing", {"file": path / "model_index.json", "model": name}),))
    parts = []
    for part in _MODULES:
        if not (path / part).is_dir():
            if part == T5:
                warned.append(_no_encoder(name, T5))
            elif part in CLIPS:
                failed.append(_no_encoder(name, part))
            else:
                failed.append(seen("file-missing", {"file": path / part, "model": name}))
            continue
        parts.append(part)
        (warned if part == T5 else failed).extend(_part(path / part, name))
    for part, sets in _TOKENIZERS.items():
        if not any(all((path / part / file).is_file() for file in files) for files in sets):
            missing = seen("file-missing", {"file": path / part / sets[-1][0], "model": name})
            (warned if part == "tokenizer_3" else failed).append(missing)
    if not (path / "scheduler" / "scheduler_config.json").is_file():
        failed.append(seen("file-missing", {"file": path / "scheduler" / "scheduler_config.json", "model": name}))
    for lost in (path / ".cache" / "huggingface" / "download").rglob("*.incomplete"):
        warned.append(seen("download-unfinished", {"model": name, "folder": lost.parent}))
        break
    return Model(path, name, _bytes(path), tuple(parts), tuple(failed), tuple(warned))


def _no_encoder(name: str, part: str) -> Finding:
    advice = Advice(sentence="checks.rule.encoder-missing.t5") if part == T5 else Advice()
    return seen("encoder-missing", {"model": name, "parts": part}, advice)


def _part(folder: Path, model: str) -> Iterator[Finding]:
    """What is wrong with the weights of one part. Of several variants, such as fp16 beside float32, one whole one will do."""
    if not (folder / "config.json").is_file():
        yield seen("file-missing", {"file": folder / "config.json", "model": model})
    variants = []
    for index in sorted([*folder.glob("*.safetensors.index*.json"), *folder.glob("*.bin.index*.json")], key=lambda file: len(file.name)):
        shards = sorted(set(_json(index).get("weight_map", {}).values()))
        variants.append([folder / shard for shard in shards] or [index])
    whole = [file for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin")) if "-of-" not in file.name]
    variants += [[file] for file in sorted(whole, key=lambda file: (file.suffix != ".safetensors", len(file.name)))]
    first: list[Finding] = []
    for files in variants:
        wrong = [one for file in files for one in _damage(weights.read_header(file), model)]
        if not wrong:
            return
        first = first or wrong
    yield from first or [seen("file-missing", {"file": folder / "*.safetensors", "model": model})]


def _damage(weight: weights.Weights, model: str) -> Iterator[Finding]:
    words = {"file": weight.path, "model": model, "there": units.size(weight.bytes), "wanted": units.size(weight.wanted)}
    if weight.state == "missing":
        yield seen("file-missing", words)
    elif weight.state == "pointer":
        yield seen("file-pointer", words)
    elif weight.state == "truncated":
        yield seen("file-truncated", words, Advice(sentence="" if weight.wanted else "checks.rule.file-truncated.header"))


def _unfinished(folder: Path) -> Model | None:
    """A repository of the hub's cache that never came, or not as a whole; None for one that is there, or that is no SD3."""
    name = folder.name.removeprefix("models--").replace("--", "/")
    if sizes.guess(name.rpartition("/")[2]) is None:
        return None
    waiting = sorted((folder / "blobs").glob("*.incomplete"))
    there = [one for one in (folder / "snapshots").glob("*/model_index.json") if _is_sd3(one.parent)]
    if waiting:
        whole = any(not _folder(one.parent).failed for one in there)
        return None if whole else Model(folder, name, failed=(seen("download-unfinished", {"model": name, "folder": folder}),))
    if there or any((folder / "snapshots").glob("*/*.safetensors")):
        return None
    wanted = "model-gated" if name.startswith("stabilityai/") else "download-unfinished"
    return Model(folder, name, failed=(seen(wanted, {"model": name, "folder": folder, "repository": name}),))


def _memory(model: Model, context: Context) -> list[Finding]:
    """Whether a picture of 1024 × 1024 can be made with the chosen T5 when nothing else is on the card."""
    from sd3deploy.diagnosis.checks import room

    facts = context.held.get("device")
    if facts is None or facts.capacity is None or facts.device is None:
        return []
    lack = room.lack(model.path, choices.find(context.encoder), facts.device, room.alone(facts.capacity), 1024)
    return [lack] if lack else []


def _name(path: Path) -> str:
    """A snapshot of the hub's cache is called by its repository."""
    repository = next((one.name for one in path.parents if one.name.startswith("models--")), "")
    return repository.removeprefix("models--").replace("--", "/") or path.name


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for part in _MODULES for file in (path / part).glob("*") if file.is_file())


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
