"""The table of text encoder choices: what each costs, what it needs, and whether this device can run it.

A new choice is a row here; a new way to store a layer is a class in `storage.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sd3deploy import button, messages
from sd3deploy.device import Device
from sd3deploy.errors import EncoderError, SettingError
from sd3deploy.nearest import nearest

__all__ = ["CHOICES", "HOST_DEFAULT", "NONE", "Choice", "find", "label", "require", "successor", "suitable", "unsuitable"]


@dataclass(frozen=True)
class Choice:
    """One row of the table.

    id: stable, in settings files' place of `name` on the command line. name: what the settings, the API and pictures store.
    bytes: resident size of T5-XXL's encoder with bfloat16 as compute type, None where the host decides; measured
    by bench/encoders.py on full shapes. error: of its output, relative to float32, with random weights on the same shapes, mean
    of three prompts; it ranks the choices and promises nothing about pictures. None where this extension makes no T5. groups: the
    optional dependencies of pyproject.toml that it needs. stored, stored_wo, stored_embedding: how linear layers, the second halves of
    the feed-forwards and the embedding are stored, as storage.py names it; "" where that is not ours.
    backends: the stacks on which it runs. capability: the least CUDA compute capability.
    """

    id: str
    name: str
    bytes: int | None
    error: float | None = None
    stored: str = ""
    stored_wo: str = ""
    groups: tuple[str, ...] = ()
    backends: frozenset[str] = frozenset()
    capability: tuple[int, int] | None = None
    fp8: bool = False
    bf16: bool = False
    stored_embedding: str = "wide"

    @property
    def quantized(self) -> bool:
        """Whether it is quantized by this extension, and so can be kept on disk."""
        return self.stored not in ("", "wide")

    @property
    def shown(self) -> str:
        """What the screen calls it, in the language that is spoken."""
        id = f"encoder.{self.id}.name"
        return messages.sentence(id) if id in messages.catalogue("en") else self.name

    @property
    def sentence(self) -> str:
        """What to expect of it, in one sentence."""
        return messages.text(f"encoder.{self.id}")


_EVERYWHERE = frozenset({"cuda", "rocm", "zluda", "ipex", "xpu", "mps", "directml", "openvino", "cpu"})
# bitsandbytes 0.50 ships CPU, CUDA, ROCm and XPU libraries (its installation page); ZLUDA, DirectML and OpenVINO are none of them.
_BITSANDBYTES = frozenset({"cuda", "rocm", "ipex", "xpu", "mps", "cpu"})

HOST_DEFAULT = Choice("default", "Host default", None, backends=_EVERYWHERE)
NONE = Choice("none", "None (CLIP only)", 0, backends=_EVERYWHERE)
# In the order in which they are listed: first what needs no package, then the others, and last what is not ours.
CHOICES = (
    NONE,
    Choice("q4", "T5 Q4", 2_748_898_304, 0.288, "q4", "q4", stored_embedding="q8", backends=_EVERYWHERE),
    Choice("q5", "T5 Q5", 3_327_712_256, 0.147, "q5", "q5", stored_embedding="q8", backends=_EVERYWHERE),
    Choice("q6", "T5 Q6", 3_906_526_208, 0.077, "q6", "q6", stored_embedding="q8", backends=_EVERYWHERE),
    Choice("q8", "T5 Q8", 4_919_450_624, 0.033, "q8", "q8", stored_embedding="q8", backends=_EVERYWHERE),
    Choice("bf16", "T5 BF16", 9_524_621_312, 0.018, "wide", "wide", backends=_EVERYWHERE, bf16=True),
    # SM60 for 4 bit, SM75 for INT8: the hardware table of bitsandbytes 0.50.
    Choice("fp4", "T5 FP4", 2_652_519_584, 0.500, "fp4", "fp4", ("bitsandbytes",), _BITSANDBYTES, (6, 0)),
    Choice("nf4", "T5 NF4", 2_652_519_584, 0.378, "nf4", "nf4", ("bitsandbytes",), _BITSANDBYTES, (6, 0)),
    Choice("int8", "T5 INT8", 5_904_281_600, 0.080, "int8", "wide", ("bitsandbytes",), _BITSANDBYTES, (7, 5)),
    Choice("fp8", "T5 FP8", 4_898_041_856, 0.116, "fp8-rows", "fp8-rows", backends=_EVERYWHERE - {"mps", "directml"}, fp8=True),
    HOST_DEFAULT,
)
# Names and ids of former choices → the id of the one that took its place: with less error, in about as many bytes or in fewer.
_SUCCESSORS = {"t5 nf4 + int8": "q5", "nf4-int8": "q5", "t5 uint4 (sdnq)": "q4", "uint4": "q4"}


def find(value: object) -> Choice:
    """The choice with that name or id, or that a screen shows so in any language; in any case of letters. Raises SettingError that
    suggests the nearest one, or says what took its place.
    """
    if isinstance(value, Choice):
        return value
    names = {key.lower(): choice for choice in CHOICES for key in (choice.name, choice.id)}
    for one in messages.languages():
        with messages.speaking(one):
            names |= {choice.shown.lower(): choice for choice in CHOICES}
    if isinstance(value, str) and value.strip().lower() in names:
        return names[value.strip().lower()]
    if new := successor(value):
        raise SettingError("setting.encoder-gone", value=repr(value)[:60], name=new.name)
    near = nearest(value, names, 0.6) if isinstance(value, str) else None
    raise SettingError("setting.encoder-unknown", value=repr(value)[:60], nearest=(names[near] if near else HOST_DEFAULT).name)


def successor(value: object) -> Choice | None:
    """What took the place of a former choice, by the name or id of that, in any case; None for any other value."""
    id = _SUCCESSORS.get(value.strip().lower()) if isinstance(value, str) else None
    return find(id) if id else None


def unsuitable(choice: Choice, device: Device) -> str | None:
    """Why this device can not run the choice, as a sentence; None when it can."""
    if device.backend not in choice.backends:
        return messages.text("encoder.unsuitable.backend", name=choice.shown, backend=device.backend)
    if choice.capability and device.capability and device.capability < choice.capability:
        needed, found = (".".join(map(str, pair)) for pair in (choice.capability, device.capability))
        return messages.text("encoder.unsuitable.capability", name=choice.shown, device=device.name, needed=needed, found=found)
    if choice.fp8 and not device.fp8:
        return messages.text("encoder.unsuitable.fp8", name=choice.shown, device=device.name)
    if choice.bf16 and not device.bf16:
        return messages.text("encoder.unsuitable.bf16", name=choice.shown, device=device.name)
    return None


def suitable(device: Device) -> list[Choice]:
    """Those that this device can run, in the order of the table."""
    return [choice for choice in CHOICES if not unsuitable(choice, device)]


def require(choice: Choice, device: Device) -> None:
    """Raise EncoderError with the reason, what to choose instead, and a button that takes the one nearest in size, when the device can not
    run the choice.
    """
    if reason := unsuitable(choice, device):
        instead = [other for other in suitable(device) if other.bytes] or [NONE]
        error = EncoderError("encoder.unsuitable", reason=reason, instead=", ".join(other.shown for other in instead))
        closest = min(instead, key=lambda other: abs((other.bytes or 0) - (choice.bytes or 0)))
        error.buttons = button.change({"encoder": closest.name}, messages.text("memory.change.encoder", encoder=closest.shown))
        raise error


def label(choice: Choice, device: Device | None = None) -> str:
    """The line in a list of choices: name, size, and why not where this device can not run it."""
    line = f"{choice.shown} – {choice.bytes / 1e9:.1f} GB" if choice.bytes else choice.shown
    reason = unsuitable(choice, device) if device else None
    return f"{line} ({reason})" if reason else line
