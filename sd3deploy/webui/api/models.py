"""What the answers are made of. Sizes of memory are bytes, times seconds since the epoch, sides of pictures px.

An answer may hold more than is said here: it grows, and nothing is taken away.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from sd3deploy.hints import KINDS, SEVERITIES
from sd3deploy.webui.api.problem import Explanation

__all__ = [
    "Begun",
    "Cancelled",
    "Check",
    "Done",
    "Events",
    "InstallPlan",
    "Installation",
    "Memory",
    "Quality",
    "Report",
    "Run",
    "Source",
    "Status",
    "Texts",
    "Verification",
]


class Finding(BaseModel, extra="allow"):
    """A known cause of a failure."""

    rule: str = Field(description="Stable name of what was recognized.", examples=["numpy-mixed"])
    cause: str = Field(description="The kind of cause.", examples=["dependency"])
    action: str = Field(description="What helps: install, refresh, restart, …; none where nothing has to be done.", examples=["restart"])
    message: str = Field(description="What is the matter.")
    remedy: str = Field(description="What to do about it.")
    evidence: list[str] = Field([], description="The lines that show it.")


class Progress(BaseModel, extra="allow"):
    """How far a text encoder has been read."""

    done: int = Field(description="Bytes.", examples=[4_761_903_104])
    total: int = Field(description="Bytes in all.", examples=[9_524_621_312])
    fraction: float = Field(description="0 to 1.", examples=[0.5])
    text: str = Field(description="The same in words.", examples=["4.8 GB of 9.5 GB"])


class Status(BaseModel, extra="allow"):
    """Model, encoder and packages as they are now."""

    model: str | None = Field(description="The loaded Stable Diffusion 3 model; null where there is none.", examples=["sd3.5-medium"])
    encoder: str | None = Field(description="The text encoder that is in it.", examples=["T5 FP4"])
    wanted: str = Field(description="The one that the settings ask for.", examples=["T5 FP4"])
    next: str = Field(description="The one that the next picture has, unless its page or request asks for another.", examples=["T5 FP4"])
    failed: list[str] = Field(
        description="Those that could not be brought; pictures that ask for one have what is in the model.", examples=[[], ["T5 FP4"]]
    )
    left: bool = Field(
        description="Whether a change to what the settings ask for came to nothing; pictures have what was there before.", examples=[False]
    )
    linear4bit: int = Field(description="Layers of T5 in 4 bit.", examples=[168])
    wo_quantized: bool = Field(description="Whether the output layers of its feed-forward parts are quantized too.", examples=[True])
    quantized_before: str | None = Field(
        description="The form of its weights where they had been quantized before they were read; else null.", examples=["Q5_K", None]
    )
    emulates: bool = Field(description="Whether T5 computes in float32 because this CPU has no bfloat16.", examples=[False])
    t5_bytes: int = Field(description="Bytes of T5 as it is.", examples=[2652519584])
    t5_bytes_16bit: int = Field(description="Bytes that it would have in 16 bit.", examples=[9524621312])
    busy: str | None = Field(description="What is being done, as a sentence.", examples=["Loading T5 FP4…"])
    progress: Progress | None = Field(description="How far the text encoder is that is being read; null where none is.")
    encoder_warning: Explanation | None = Field(
        description="What is wrong with the encoder in memory: the file that it lies in was changed on disk.", examples=[None]
    )
    last_error: Explanation | None = Field(description="The last error that no success has followed.", examples=[None])
    packages: dict[str, str | None] = Field(description="Package → version; null: not installed.", examples=[{"bitsandbytes": "0.50.2"}])
    pid: int = Field(description="Of the server's process: the same as long as nothing was restarted.", examples=[4711])
    line: str = Field(description="All of it in one line, as the panel shows it.", examples=["sd3.5-medium with T5 FP4 (2.7 GB)."])
    findings: list[Finding] = Field(description="What has failed lately and why, the latest first.")


class Source(BaseModel, extra="allow"):
    """A kind of source of T5's weights. Sizes are there where it can be used."""

    kind: str = Field(description="As the setting names it.", examples=["Repository"])
    chosen: bool = Field(description="Whether it is the one that is asked for.", examples=[True])
    name: str = Field(description="What it leads to.", examples=["comfyanonymous/flux_text_encoders:t5xxl_fp16.safetensors"])
    complete: bool = Field(description="Whether it was looked at, and has all of T5.", examples=[True])
    text: str = Field(description="What it is, or what is wrong with it.", examples=["T5-XXL, FP16, 9.5 GB, complete."])
    remedy: str = Field("", description="What to do about it.", examples=[""])
    id: str = Field("", description="Stable name of what is wrong.", examples=[""])
    cost: str = Field("", description="What happens when it is chosen.", examples=["9.5 GB are fetched, and none of that is stored."])
    cached: bool = Field(False, description="Whether an encoder of it is kept already.", examples=[False])
    pending: bool = Field(False, description="Whether the network would have to be asked about it.", examples=[False])
    read: int = Field(0, description="Bytes from this disk.", examples=[0])
    fetched: int = Field(0, description="Bytes over the network.", examples=[9_524_621_312])
    stored: int = Field(0, description="Bytes of that which stay on the disk.", examples=[0])
    kept: int = Field(0, description="Bytes that are kept of the result.", examples=[2_652_519_584])


class Button(BaseModel, extra="allow"):
    """What the page offers to do about a message."""

    id: str = Field(description="What it does.", examples=["use"])
    label: str = Field(description="The words on it.", examples=["Use 1008×1008"])
    fields: dict[str, Any] = Field({}, description="What is set by it.", examples=[{"width": 1008, "height": 1008}])
    seconds: int = Field(0, description="How long after the message it can be pressed; 0: as long as it is there.", examples=[0])


class Event(BaseModel, extra="allow"):
    """One thing that happened."""

    seq: int = Field(description="Its number; it only grows.", examples=[7])
    id: str = Field(description="Stable name of the sentence, the same in every language.", examples=["encoder.ready-smaller"])
    severity: Literal["info", "success", "warning", "error"] = Field(description="How bad it is.", examples=["success"])
    message: str = Field(description="What happened.", examples=["T5 FP4 ready: 2.7 GB instead of 9.5 GB."])
    remedy: str = Field(description="What to do about it.", examples=[""])
    time: float = Field(description="Seconds since the epoch.", examples=[1795660000.5])
    job: bool = Field(description="Whether it is about a single job, and over with it.", examples=[False])
    about: str = Field(description="What ends it once that is put right; empty where nothing does.", examples=["encoder", ""])
    buttons: list[Button] = Field(description="What the page can do about it.", examples=[[]])
    action: Button | None = Field(description="The first one of `buttons`.", examples=[None])


class Events(BaseModel, extra="allow"):
    """What happened since the last question, and what is under way."""

    server: str = Field(description="Name of this process: give it back with the next question.", examples=["4711-1795660000"])
    now: float = Field(description="The server's clock, seconds since the epoch.", examples=[1795660001.0])
    events: list[Event] = Field(description="Oldest first; at most the last hundred.")
    over: list[int] = Field(description="The numbers of errors that are over: nobody has to read them any more.", examples=[[], [7]])
    busy: str | None = Field(description="What is being done, as a sentence.", examples=[None])
    run: int = Field(description="Number of the last load or job that was watched, 0 for none.", examples=[3])
    verifying: bool = Field(description="Whether checks are running.", examples=[False])
    installing: bool = Field(description="Whether an installation is running.", examples=[False])
    measuring: bool = Field(description="Whether the text encoders are being measured.", examples=[False])
    loading: bool = Field(description="Whether a text encoder is being loaded; it can be cancelled.", examples=[True])
    progress: Progress | None = Field(description="How far the text encoder is that is being read; null where none is.")
    active: bool = Field(description="Whether anything is under way, such as a load, a picture, checks, a measurement.", examples=[False])


class GuardFinding(BaseModel, extra="allow"):
    """What a guard has to say about a job."""

    id: str = Field(description="Stable name of the sentence.", examples=["size.not-multiple"])
    severity: Literal["advice", "warning", "error"] = Field(description="How bad it is.", examples=["warning"])
    message: str = Field(description="What is the matter.")
    remedy: str = Field(description="What to do about it.")
    change: dict[str, Any] = Field(description="What makes it run: field of the job → value.", examples=[{"width": 1008, "height": 1008}])
    offer: dict[str, Any] = Field(description="What would be better, and is not set by itself.", examples=[{"width": 1024, "height": 1024}])
    action: Literal["tell", "apply", "refuse"] = Field(description="What is done, as the guard is set.", examples=["apply"])
    told: str = Field("", description="`message` with what is done about it, as a person is told.")


class Hint(BaseModel, extra="allow"):
    """A few words about a control of the page."""

    kind: Literal[KINDS] = Field(description="Which control.", examples=["size"])  # type: ignore[valid-type]
    severity: Literal[SEVERITIES] = Field(description="How bad it is.", examples=["change"])  # type: ignore[valid-type]
    text: str = Field(description="The words.", examples=["1000×1000 → 1008×1008"])
    sentence: str = Field("", description="The same at length, with what can be done.")
    buttons: list[Button] = Field([], description="What the page can do about it.")


class CheckMemory(BaseModel, extra="allow"):
    """Whether the memory suffices."""

    answer: Literal["fits", "tight", "no", "unknown"] = Field(description="Whether it fits.", examples=["tight"])
    need: int = Field(description="Bytes at the peak.", examples=[11400000000])
    usable: int = Field(description="Bytes that can be used.", examples=[12000000000])
    line: str = Field(description="The same as a sentence.")


class Check(BaseModel, extra="allow"):
    """Whether a job would run, and as what."""

    findings: list[GuardFinding] = Field(description="What the guards say.")
    width: Any = Field(description="px, after the changes; as it was given where it can not be made.", examples=[1008])
    height: Any = Field(description="px, after the changes.", examples=[1008])
    sampler: str = Field(description="After the changes.", examples=["Default"])
    code: int = Field(description="0: runs as asked; 1: is changed; 2: is refused.", examples=[1])
    hints: list[Hint] = Field(description="The same in a few words each, and the memory.")
    memory: CheckMemory | None = Field(description="null where the job is refused or the memory is not looked at.")


class Capacity(BaseModel, extra="allow"):
    """The memory of this machine now, in bytes; 0: not known."""

    kind: str = Field(description="cuda, rocm, xpu, mps, cpu, or unknown.", examples=["cuda"])
    name: str = Field("", description="The device.", examples=["NVIDIA GeForce RTX 3060"])
    total: int = Field(0, description="Of the device.", examples=[12_884_901_888])
    usable: int = Field(0, description="What this process may have of it.", examples=[12_000_000_000])
    others: int = Field(0, description="What other programs hold of it.", examples=[500_000_000])
    ram_total: int = Field(0, description="Of the machine.", examples=[34_359_738_368])
    ram_usable: int = Field(0, description="What this process may have of it.", examples=[20_000_000_000])
    unified: bool = Field(False, description="Whether device and RAM are the same memory.")
    spills: bool = Field(False, description="Whether the driver takes RAM where the device has no more.")


class Verdict(BaseModel, extra="allow"):
    """Whether it fits, for the phase that comes nearest to the limit."""

    answer: Literal["fits", "tight", "no", "unknown"] = Field(description="Whether it fits.", examples=["fits"])
    phase: str = Field("", description="load, encode, denoise or decode.", examples=["denoise"])
    where: str = Field("gpu", description="gpu or ram.", examples=["gpu"])
    need: int = Field(0, description="Bytes at the peak.", examples=[8_000_000_000])
    usable: int = Field(0, description="Bytes that can be used.", examples=[12_000_000_000])
    missing: int = Field(0, description="Bytes that are missing.", examples=[0])


class MemoryChange(BaseModel, extra="allow"):
    """What would make it fit."""

    fields: dict[str, Any] = Field(description="Field → value.", examples=[{"encoder": "T5 NF4"}])
    sentence: str = Field(description="The same as an instruction.")


class Bar(BaseModel, extra="allow"):
    """What a phase needs where it comes nearest to the limit."""

    phase: str = Field(description="load, encode, denoise or decode.", examples=["denoise"])
    name: str = Field(description="The phase as the screen calls it.", examples=["denoising"])
    where: Literal["gpu", "ram"] = Field(description="Which memory it is.", examples=["gpu"])
    place: str = Field(description="The memory as the screen calls it.", examples=["GPU memory"])
    need: int = Field(description="Bytes at the peak.", examples=[5_600_000_000])
    usable: int = Field(description="Bytes that can be used; 0: not known.", examples=[7_200_000_000])
    answer: Literal["fits", "tight", "no", "unknown"] = Field(description="Whether it fits.", examples=["fits"])
    short: str = Field(description="The same as a word.", examples=["fits"])
    sentence: str = Field(description="All of it as a sentence.")
    segments: list[dict[str, Any]] = Field(description="What it is made of: part, name, bytes.")


class Memory(BaseModel, extra="allow"):
    """What a picture needs and what there is. Where no Stable Diffusion 3 model is selected, the capacity alone."""

    capacity: Capacity = Field(description="What there is.")
    mode: str = Field(description="The setting of the memory check.", examples=["warn"])
    corrections: dict[str, float] = Field(description="Phase → factor that runs on this machine have shown.", examples=[{"decode": 1.04}])
    verdict: Verdict | None = Field(description="Whether it fits.")
    line: str = Field(description="The verdict as a sentence.")
    model: str | None = Field(None, description="The model that is judged.", examples=["sd3.5-medium"])
    encoder: str | None = Field(None, description="With which text encoder.", examples=["T5 FP4"])
    width: int | None = Field(None, description="px.", examples=[1024])
    height: int | None = Field(None, description="px.", examples=[1024])
    batch: int | None = Field(None, description="Pictures at a time.", examples=[1])
    offload: str | None = Field(None, description="The model offload mode.", examples=["balanced"])
    tiling: bool | None = Field(None, description="Whether the VAE decodes in tiles.", examples=[False])
    parts: dict[str, int] | None = Field(None, description="Part of the model → bytes.", examples=[{"transformer": 4_940_000_000}])
    total: int | None = Field(None, description="Bytes of all parts.", examples=[9_500_000_000])
    phases: dict[str, dict[str, int]] | None = Field(None, description="Phase → where → bytes at its peak.")
    change: MemoryChange | None = Field(None, description="The cheapest change that makes it fit, where it does not.")
    recommendation: str | None = Field(None, description="The text encoder to take here.", examples=["T5 INT8"])
    advice: str | None = Field(None, description="The recommendation as a sentence.")
    why: str | None = Field(None, description="The recommendation alone, with the reason for it.")
    bars: list[Bar] | None = Field(None, description="Phase by phase, to draw.")
    choices: dict[str, dict[str, Any]] | None = Field(None, description="Text encoder → its verdict.")
    table: list[list[Any]] | None = Field(None, description="Rows to show: name, bytes.")
    runs: list[Run] = Field([], description="The last twenty loads and jobs, without their readings.")


class Run(BaseModel, extra="allow"):
    """A load or a job whose memory was watched."""

    number: int = Field(description="Counts from 1.", examples=[3])
    kind: str = Field(description="load or job.", examples=["job"])
    title: str = Field(description="What it was about.", examples=["sd3.5-medium, T5 FP4, 1024×1024"])
    started: float = Field(description="Seconds since the epoch.", examples=[1795660000.0])
    seconds: float = Field(description="How long it took.", examples=[12.3])
    outcome: str = Field(description="done, running, failed, out of memory, no picture, or the name of an error.", examples=["done"])
    phases: dict[str, dict[str, int]] = Field(description="Phase → counter → bytes at its peak.")
    base: int = Field(0, description="Bytes of RAM that are not the model's, in a job on a processor.", examples=[1_900_000_000])
    compared: dict[str, dict[str, int]] = Field({}, description="Phase → expected and measured bytes of the same thing.")
    times: list[float] | None = Field(None, description="Of each reading, seconds since the start.")
    readings: dict[str, list[int]] | None = Field(None, description="Counter → bytes, one for each time.")
    marks: list[dict[str, Any]] | None = Field(None, description="When each phase, and each step of denoising, began.")


class Done(BaseModel, extra="allow"):
    """What has been done."""

    done: str = Field(description="As a sentence.", examples=["Done: take T5 INT8 as text encoder."])


class Begun(BaseModel, extra="allow"):
    """A job that runs now."""

    job: int = Field(description="Its number: ask for its progress with GET.", examples=[1])


class Cancelled(BaseModel, extra="allow"):
    """What is being ended."""

    cancelled: bool = Field(description="Whether anything was running.", examples=[True])
    jobs: list[Literal["verify", "install", "quality", "encoder"]] = Field(description="What was running.", examples=[["install"]])


class Result(BaseModel, extra="allow"):
    """One check that is over."""

    id: str = Field(description="Stable name of the check.", examples=["packages"])
    title: str = Field(description="What was looked at.")
    state: str = Field(description="ok, warning, error, skipped or cancelled.", examples=["ok"])
    message: str = Field(description="What was found.")
    remedy: str = Field("", description="What to do about it.")
    seconds: float = Field(0.0, description="How long it took.", examples=[0.2])
    findings: list[Finding] = Field([], description="Known causes.")
    facts: dict[str, Any] = Field({}, description="What it was judged by.")


class Verification(BaseModel, extra="allow"):
    """The last run of the checks."""

    job: int = Field(description="Its number, 0 where there was none.", examples=[1])
    started: float | None = Field(None, description="Seconds since the epoch.")
    encoder: str | None = Field(None, description="The text encoder that is checked.", examples=["T5 FP4"])
    state: Literal["none", "running", "done", "cancelled"] = Field(description="How it stands.", examples=["running"])
    fraction: float = Field(description="0 to 1 of all steps.", examples=[0.4])
    text: str = Field(description="What is being done.")
    healthy: bool | None = Field(None, description="Whether all is well; null as long as it is not known.")
    results: list[Result] = Field(description="Those that are over.")


class PlannedChange(BaseModel, extra="allow"):
    """One package that would change."""

    name: str = Field(description="Of the package.", examples=["bitsandbytes"])
    before: str | None = Field(description="The version that is there; null: none.", examples=[None])
    wanted: str = Field(description="The versions that will do (PEP 440); empty: any.", examples=[">=0.48"])
    replace: bool = Field(description="Whether its files are moved away first.", examples=[True])
    download: int | None = Field(description="Bytes, about; null: not known.", examples=[43139553])


class InstallPlan(BaseModel, extra="allow"):
    """What would be done."""

    groups: list[str] = Field(
        description="The groups of packages that are looked at, beside what everybody needs.", examples=[["bitsandbytes"]]
    )
    changes: list[PlannedChange] = Field(description="Package by package.")
    sweep: list[str] = Field(description="Packages of which only leftovers are deleted.", examples=[[]])
    stale: list[str] = Field(description="Packages that only a restart helps.", examples=[[]])
    command: list[str] = Field(description="What is run, word for word.")
    text: str = Field(description="All of it for people.")
    download: int = Field(description="Bytes to download, about.", examples=[43139553])
    unpacked: int = Field(description="Bytes on disk, about.", examples=[129151546])
    empty: bool = Field(description="Whether there is nothing to do.", examples=[False])
    refusal: Explanation | None = Field(description="Why this server would not do it; null where it would.", examples=[None])


class Installation(BaseModel, extra="allow"):
    """The last installation."""

    job: int = Field(description="Its number, 0 where there was none.", examples=[1])
    started: float | None = Field(None, description="Seconds since the epoch.")
    state: Literal["none", "running", "done", "failed", "cancelled"] = Field(description="How it stands.", examples=["running"])
    fraction: float | None = Field(description="0 to 1; null where it can not be told.", examples=[None])
    text: str = Field(description="The last line of the installer.", examples=["Downloading bitsandbytes-0.50.2 (43.1 MB)"])
    changed: dict[str, str] = Field(description="Package → version that is there now.", examples=[{"bitsandbytes": "0.50.2"}])
    error: Explanation | None = Field(description="Why it failed.", examples=[None])
    restart: Explanation | None = Field(description="What the server has to be restarted for.", examples=[None])


class Spread(BaseModel, extra="allow"):
    """Of all prompts."""

    mean: float = Field(description="Their mean.", examples=[0.0315])
    worst: float = Field(description="That of the worst of them.", examples=[0.0712])


class QualityRow(BaseModel, extra="allow"):
    """What was measured of one text encoder."""

    id: str = Field(description="Stable name of the choice.", examples=["q5"])
    name: str = Field(description="Its name.", examples=["T5 Q5"])
    bytes: int = Field(description="Of T5 in this form.", examples=[3_340_000_000])
    error: Spread = Field(description="Length of the difference to the output of float32, relative to that.")
    cosine: Spread = Field(description="Of the output and that of float32.")
    encode_s: float = Field(description="Seconds to encode a prompt, the median.", examples=[0.04])


class Quality(BaseModel, extra="allow"):
    """The last measurement of the text encoders."""

    job: int = Field(description="Its number, 0 where there was none.", examples=[1])
    started: float | None = Field(None, description="Seconds since the epoch.")
    state: Literal["none", "running", "done", "failed", "cancelled"] = Field(description="How it stands.", examples=["running"])
    fraction: float = Field(description="0 to 1 of what had not been measured before.", examples=[0.4])
    text: str = Field(description="What is being done, or what was found.", examples=["48 of 100 prompts done, T5 Q5"])
    title: str = Field("", description="What was measured, where, and with how much.")
    rows: list[QualityRow] = Field(description="When it is done: each text encoder, the smallest error first.")
    notes: list[str] = Field(description="Why a text encoder is not among them.")
    error: Explanation | None = Field(description="Why it failed.", examples=[None])


class Texts(BaseModel, extra="allow"):
    """The sentences of the page."""

    language: str = Field(description="Code of the language.", examples=["en"])
    texts: dict[str, str] = Field(description="Name of a sentence → sentence.", examples=[{"page.close": "Close"}])
    names: dict[str, str] = Field(
        description="Value of a setting → what the screen calls it, where that differs.", examples=[{"Host default": "SD.Next 默认"}]
    )


class Report(BaseModel, extra="allow"):
    """Everything about this server that somebody needs who is to help; without tokens, passwords, user names and addresses."""

    generated: str = Field(description="When, in UTC.", examples=["2026-07-23T12:00:00+00:00"])
    host: dict[str, Any] = Field(description="Folder and commit of SD.Next.")
    python: dict[str, Any] = Field(description="Version, platform, executable.")
    device: dict[str, Any] = Field(description="What is computed on.")
    packages: dict[str, Any] = Field(description="Package → version.")
    settings: dict[str, Any] = Field(description="Every setting that is not as the host has it by default, and all of SD3 Deploy.")
    model: dict[str, Any] = Field(description="Model and text encoder.")
    contract: dict[str, Any] = Field(description="How many names of SD.Next were looked at, and which are not as SD3 Deploy knows them.")
    findings: list[Finding] = Field(description="What has failed lately and why.")
    checks: list[dict[str, Any]] = Field(description="The results of the last run of the checks.")
    memory: dict[str, Any] = Field(description="What there is of it.")
    runs: list[dict[str, Any]] = Field(description="The last loads and jobs.")
    events: list[dict[str, Any]] = Field(description="What happened.")


Memory.model_rebuild() if hasattr(Memory, "model_rebuild") else Memory.update_forward_refs()
