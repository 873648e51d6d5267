"""One failure, parsed once: what was raised and because of what, where it ran, whose code that was, and the numbers that decide.

Everything is read from the text: the exception itself may be of another process, another machine, or a year ago.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sd3deploy.lazy import lazy
from sd3deploy.vendored import canonicalize_name

__all__ = ["NATIVE", "Failure", "Frame", "Raised", "class_owner", "failure_of", "message"]

CLASS = r"(?:[A-Za-z_]\w*\.)*_?[A-Z]\w*(?:Error|Exception|Timeout|Exhausted|Failed|Disconnected|NotFound|Interrupt|Read|Refused|Corruption)"
_RAISED = lazy(rf"(?<![\w.'\"/\\<(\[])(?P<name>{CLASS})(?=: | ?$)")
_NAMED = lazy(rf"(?<![\w.])({CLASS})\b")
_LAST = lazy(r"(?P<name>(?:\w+\.)*\w+)(?:: (?P<text>.*))?$")  # what ends a traceback, whatever it is called
_TRACEBACK = lazy(r"(?:\^C)?(?:[╭┌+|]\s?[─-]* ?(?:Exception Group )?)?Traceback \(most recent call last\)")
_CHAINED = lazy(r"The above exception was the direct cause|During handling of the above exception|Traceback \(most recent")
_DRAWN = lazy("[│┃╭╮╰╯┌┐└┘─━❱├]+")
_WALLS = "│┃╭╮╰╯┌┐└┘├❱|"
_PLAIN = r'File "(?P<path>[^"]+)", line (?P<line>\d+)(?:,? in (?P<function>[\w<>.]+))?'
_RICH = r"(?P<path2>(?:[A-Za-z]:[\\/]|/|~/)[^\"'│:]{1,400}?\.py):(?P<line2>\d[\d ]*) in (?P<function2>[\w<>.]+)"
_FRAMES = lazy(f"{_PLAIN}|{_RICH}")
_STARTS = lazy(r'File "|[A-Za-z]:\\.{1,200}\.py:\d+ in |/.{1,200}\.py:\d+ in ')
_ENTRY = lazy(r"^.{0,120}?\b(?:ERROR|CRITICAL|FATAL)\b[\s|:\]]*")  # what stands before a message: time, machine, level, logger

# Who owns a file, the most special first: what a path holds last counts.
_OWNERS = (
    ("distribution", lazy(r".*[\\/](?:site|dist)-packages[\\/]+(?P<name>[^\\/]+)")),
    ("extension", lazy(r".*[\\/](?:extensions(?:-builtin)?|custom_nodes)[\\/]+(?P<name>[^\\/\"'\s]+)")),
    ("python", lazy(r"(?:.*[\\/]lib[\\/](?:python\d[\d.]*[\\/])?(?P<name>[\w.]+)[\\/.]|<frozen (?P<name2>\S+)>)", re.IGNORECASE)),
)
_SITE = lazy(r"(?:site|dist)-packages[\\/]+(\w+)")
# Programs by what only their paths and modules have.
_PROGRAMS = (
    ("ComfyUI", lazy(r"ComfyUI|[\\/]comfy[\\/]|[\\/]custom_nodes[\\/]|^comfy\b|\bgot prompt\b")),
    ("Forge", lazy(r"modules_forge|ldm_patched|[\\/]backend[\\/]|webui-forge|^backend\b")),
    ("Fooocus", lazy(r"Fooocus", re.IGNORECASE)),
    ("InvokeAI", lazy(r"invokeai", re.IGNORECASE)),
    ("SD.Next", lazy(r"sd\.?next|[\\/]automatic[\\/]|\| sd \|", re.IGNORECASE)),
    ("Stable Diffusion web UI", lazy(r"stable-diffusion-webui", re.IGNORECASE)),
)
# Classes that a message names without their library, by how the libraries call theirs.
_CLASSES = (
    ("bitsandbytes", lazy(r"Params4bit|Int8Params|Linear4bit|Linear8bitLt")),
    ("diffusers", lazy(r"\w*(?:Pipeline|Transformer\dDModel|UNet\w*|AutoencoderKL\w*|Scheduler|ControlNetModel|AttnProcessor\w*)$")),
    ("transformers", lazy(r"(?:CLIP|T5|UMT5|Siglip|Llama|Qwen|Gemma|Mistral|Bert|Auto|PreTrained)\w+|\w+Tokenizer(?:Fast)?$")),
    ("peft", lazy(r"(?:Lora|Peft)\w*")),
    ("torch", lazy(r"Tensor$|Parameter$|(?:LayerNorm|Linear|Conv2d|Embedding|ModuleList|Sequential)$")),
)
# How a process ends that could not say anything itself: by the C++ runtime, the GPU's driver, Python's faulthandler, a shell, the kernel,
# a supervisor. Exit codes: 128 and the signal (132 to 139; 143 was asked for), the signal below 0, Windows' NTSTATUS from 0xC0000000 on.
NATIVE = lazy(
    r"(?i)NVRM: Xid \(|Segmentation fault|Memory access fault by GPU|terminate called|terminating due to uncaught|\(core dumped\)"
    r"|Illegal instruction"
    r"|Bus error\b|Fatal Python error|Windows fatal exception|double free or corruption|free\(\): invalid|corrupted size vs"
    r"|stack smashing detected"
    r"|(?:^|: |\d )(?:Getötet|Speicherzugriffsfehler|已杀死|段错误)\b"
    r"|\bKilled$|: line \d+: +\d+ (?:Killed|Aborted)|^(?:zsh: |\[\d+\] [+-]? ?\d* *)(?:killed|abort|segmentation)\b"
    r"|Killed process \d+ \(python|oom[-_]kill|by signal SIG(?:KILL|SEGV|ABRT|BUS|ILL)|<Signals\.SIG"
    r"|exception (?:code )?0xc0000\w{3}"
    r"|(?:exit(?:s|ed)?|return(?:ed|s)?|finished)(?: with)?(?: non-zero)?(?: exit| return)? (?:code|status)\W{0,3}"
    r"(?:13[2-9]\b|-(?:[4-9]|11)\b|32212\d{5}|-10737\d{5}|0xc0000\w{3})"
)
# A line that says itself that it is an error: pip's, A1111's, ComfyUI's, a server's, the end of a traceback of which the rest was cut off.
_SAYS = lazy(
    r"(?i)\W{0,4}(?:stderr: )?(?:\w+ ){0,2}(?:error|exception)"
    r"(?= ?:| (?:during|completing|loading|verifying|in |occurred|while|code|no |named|response from)|\(s\) in)"
    r"|× (?:Failed|Preparing|Getting|Building|No solution)|docker: |failed to register layer"
    r"|Python was not found|No Python at|\S+: \S+: bad interpreter|Failed to validate prompt|Stable diffusion model failed to load"
    r"|Unable to determine the device handle|NVIDIA-SMI (?:has failed|couldn't)"
    r"|[\s*!]*Failed to import \S+ because|Cannot import \S+ module for custom nodes"
    r"|Unhandled |Uncaught |fatal: |Unable to open /dev|\[Errno \d+\] |Could not load library |\S*python[\w.]*: No module named "
)
_ENDS = lazy(rf"(?:{CLASS}|(?:[a-z_]\w*\.)+[A-Z]\w+)(?::(?: |$)|$)")  # the last line of a traceback
_BEFORE = lazy(r"[\d\-T:.,\[\] ]*(?:- )?(?:\(\w[^)]*\) |[\w.\-]+ *[|:] +|Error is: )?")  # a time, a thread, a container, a node
_AGAIN = lazy(
    r"(?i)thrown while requesting (?:HEAD|GET)|Retrying in \d|Trying to resume download|will (?:now )?(?:retry|fall ?back|try to load)"
    r"|\bfalling back to\b"
)
_PROBE = lazy(r"_?(?:is|has|check|try|probe)_\w*(?:available|installed|import|version|support\w*)$")
_FAILED = ("ERROR", "CRITICAL", "FATAL")
_STATUS = lazy(
    r"(?i)\b([45]\d\d) (?:Client|Server) Error|\bHTTP(?:/[\d.]+)?[ :]+(?:status |error )?\W?([45]\d\d)\b"
    r"|\bstatus(?:[ _]code)?\W{1,3}([45]\d\d)\b|HTTP Error ([45]\d\d)"
    r"|\b([45]\d\d),? (?:Too Many|Unauthorized|Forbidden|Not Found|Bad Gateway)"
)
_ERRNO = lazy(r"\[Errno (-?\d+)\]|\bos error (\d+)\)|\[WinError (\d+)\]|WinError (\d+)\b")
_URL = lazy(r"https?://([\w.-]+)|host=['\"]([\w.-]+)['\"]|Failed to resolve ['\"]([\w.-]+)")
_PATH = lazy(r"['\"]((?:[A-Za-z]:)?[^'\"]*?[\\/][^'\"]+)['\"]|: ((?:/|[A-Za-z]:[\\/])\S+)")


@dataclass(frozen=True)
class Frame:
    """path, line, function: as the traceback has them."""

    path: str
    line: int
    function: str

    @cached_property
    def kind(self) -> str:
        """"distribution", "extension", "python" (its own library) or "program": everything else."""
        return self._owner[0]

    @cached_property
    def owner(self) -> str:
        """The folder of a distribution's modules, the name of an extension, the program."""
        return self._owner[1]

    @cached_property
    def _owner(self) -> tuple[str, str]:
        for kind, pattern in _OWNERS:
            if found := pattern.match(self.path):
                name = next(filter(None, found.groups()))
                return kind, re.sub(r"\.pyd?$", "", name) if kind != "extension" else name
        return "program", _program(self.path)


@dataclass(frozen=True)
class Raised:
    """name: with its module, as the traceback has it. text: its message, in one line."""

    name: str
    text: str

    @property
    def type(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Failure:
    """text: all of the entry in one line. said: the same without the bodies of tracebacks, whose code quotes other messages.

    chain: what was raised, the cause first. level: of the entry. traceback: there is one. ended: nothing was said after it. says: it calls
    itself an error.
    """

    text: str
    said: str = ""
    chain: tuple[Raised, ...] = ()
    level: str = ""
    traceback: bool = False
    ended: bool = False
    says: bool = False

    @cached_property
    def failed(self) -> bool:
        """Whether something has failed: not a remark, not one try of several, not a look whether something is there.

        A traceback that a program prints with a warning is a part of it, unless nothing was said after it: then it was the end.
        """
        if self.level in _FAILED or NATIVE.search(self.said):
            return self.level != "" or not self.again
        if self.traceback:
            remark = self.level in ("WARNING", "WARN") or any(_PROBE.match(frame.function) for frame in self.frames)
            return self.ended if remark else True
        return self.level == "" and self.says and not self.again

    @cached_property
    def again(self) -> bool:
        """One try of several: what comes of it is said later."""
        return _AGAIN.search(self.said) is not None

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        """As they ran, the innermost last."""
        found = []
        for one in _FRAMES.finditer(self.text):
            path, line, function = (one[name] or one[f"{name}2"] or "" for name in ("path", "line", "function"))
            found.append(Frame(path, int(line.replace(" ", "") or 0), function))
        return tuple(found)

    @cached_property
    def types(self) -> frozenset[str]:
        """Every class of errors that is named, also those inside of a message ("Caused by NameResolutionError(…)")."""
        return frozenset([one.type for one in self.chain] + [name.rpartition(".")[2] for name in _NAMED.findall(self.said)])

    @cached_property
    def status(self) -> int:
        """Of HTTP, 400 and up; 0 where there is none."""
        return _number(_STATUS, self.said)

    @cached_property
    def errno(self) -> int:
        """POSIX' or Windows' number, 0 where there is none; `windows` says whose."""
        return _number(_ERRNO, self.said)

    @cached_property
    def windows(self) -> bool:
        return "WinError" in self.said or re.search(r"[A-Za-z]:\\", self.text) is not None

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """Servers that are named."""
        return tuple(dict.fromkeys(name.lower() for found in _URL.findall(self.said) for name in found if name))

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Files and folders that the message names."""
        return tuple(quoted or bare for quoted, bare in _PATH.findall(self.said))

    @cached_property
    def tops(self) -> tuple[str, ...]:
        """The packages whose code or files are named, the last one last, by the names of their folders."""
        return tuple(_SITE.findall(self.text))

    @cached_property
    def extension(self) -> str:
        """The extension whose code ran last, "" where none did."""
        return next((frame.owner for frame in reversed(self.frames) if frame.kind == "extension"), "")

    @cached_property
    def extension_asks(self) -> bool:
        """Whether the last code that ran was an extension's: what it asks for is its own affair."""
        return next((frame.kind == "extension" for frame in reversed(self.frames) if frame.kind in ("extension", "distribution")), False)

    @cached_property
    def program(self) -> str:
        """The program that ran, "" where nothing tells."""
        return next((frame.owner for frame in self.frames if frame.kind == "program" and frame.owner), "") or _program(self.text)

    def asker(self, owner: str) -> str:
        """The distribution whose code was the last to run, other than the owner of what it asked for; "" where an extension asks."""
        if self.extension_asks:
            return ""
        return next((top.replace("_", "-") for top in reversed(self.tops) if canonicalize_name(top) != canonicalize_name(owner)), "")

    @cached_property
    def during(self) -> str:
        """install, start, load, generate, or "" where the frames and the message do not tell."""
        functions = {frame.function for frame in self.frames}
        if re.search(r"\bpip\b|subprocess-exited|building wheel|setup\.py|\binstaller?\b", self.said):
            return "install"
        if functions & {"process_images", "process_images_inner", "process_diffusers", "sample", "denoise"} or "Processing" in self.said:
            return "generate"
        if any(re.match(r"(?:from_pretrained|from_single_file|load)", one) for one in functions) or re.search(r"\bload", self.said, re.I):
            return "load"
        if "forward" in functions or "__call__" in functions:
            return "generate"
        return "start" if functions and functions <= {"<module>", "main", "start", "imports", "initialize", "import_module"} else ""

    @property
    def last(self) -> Raised | None:
        """What the program has met in the end."""
        return self.chain[-1] if self.chain else None

    @property
    def innermost(self) -> tuple[Frame, ...]:
        """Of each owner whose code ran the innermost frame, in the order of their calls; Python's own library is left out."""
        last = {(frame.kind, frame.owner): frame for frame in self.frames if frame.kind != "python"}
        return tuple(last.values())


def failure_of(lines: Sequence[str], level: str = "", text: str = "", *, last: bool = True) -> Failure:
    """Parse the lines of an entry. text: them in one line, where that was mended already. last: of the log."""
    outside, ended, traceback = _outside(lines)
    said = _joined(outside)
    chain = []
    found = list(_RAISED.finditer(said))
    for one, after in zip(found, [*(after.start() for after in found[1:]), len(said)], strict=bool(found)):
        chain.append(Raised(one["name"], _CHAINED.split(said[one.end() + 2 : after])[0].strip()))
    over = False
    if ended is not None and (end := _LAST.match(outside[ended].strip())):
        over = any(line.strip() and not line[:1].isspace() for line in outside[ended + 1 :])
        text_of = _CHAINED.split(_joined([end["text"] or "", *outside[ended + 1 :]]))[0]
        chain = [one for one in chain if not text_of.startswith(one.text) or one.name != end["name"]] + [Raised(end["name"], text_of)]
    starts = [(line, _BEFORE.sub("", line, count=1)) for line in map(str.strip, outside)]
    says = any(_SAYS.match(bare) or _SAYS.match(line) or _ENDS.match(line) or _ENDS.match(bare) for line, bare in starts)
    return Failure(text or _joined(lines), said, tuple(chain), level, traceback, last and not over, says)


def class_owner(name: str) -> str:
    """The distribution whose class it is, by the names that libraries give theirs; "" where nobody knows."""
    return next((owner for owner, pattern in _CLASSES if pattern.match(name)), "")


def message(line: str) -> str:
    """The line of a log without what stands before its message."""
    return _ENTRY.sub("", line).strip()


def _outside(lines: Sequence[str]) -> tuple[list[str], int | None, bool]:
    """The lines that are no bodies of tracebacks, which of them ended the last one, and whether there was one at all."""
    outside: list[str] = []
    ended: int | None = None
    seen = boxed = False
    indent = -1  # of the traceback that is open
    for line in lines:
        bare, depth = line.strip(), len(line) - len(line.lstrip())
        if found := _TRACEBACK.match(bare):
            seen, indent, boxed = True, depth, found[0][0] in _WALLS
        elif indent < 0 and _STARTS.match(bare):  # its beginning was cut off
            seen, indent, boxed = True, max(0, depth - 2), False
        elif indent < 0:
            outside.append(line)
        elif bare and not (bare[0] in _WALLS if boxed else depth > indent):
            indent, ended = -1, len(outside)
            outside.append(line)
    return outside, ended, seen


def _joined(lines: Sequence[str]) -> str:
    return " ".join(_DRAWN.sub(" ", " ".join(lines)).split())


def _program(path: str) -> str:
    return next((name for name, pattern in _PROGRAMS if pattern.search(path)), "")


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return int(next(filter(None, found.groups()))) if found else 0
