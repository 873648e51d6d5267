"""Something that has failed is always found, whoever failed and however it is written down; what has not failed is no finding."""

from __future__ import annotations

import string
import textwrap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sd3deploy.diagnosis import logfile, matcher
from sd3deploy.diagnosis.failure import failure_of

CLASSES = st.text(string.ascii_letters, min_size=3, max_size=20).map(lambda name: name[:1].upper() + name[1:])
TEXTS = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), max_size=60).map(str.strip)
HEAD = "2026-07-23 19:21:2{},419 | pc | sd | {} | sd_models | {}\n"


def plain(name, text, indent=""):
    lines = ["Traceback (most recent call last):", '  File "/opt/thing/venv/lib/python3.11/site-packages/strange/core.py", line 12, in run']
    lines += ["    go()", f"{name}: {text}" if text else name]
    return "".join(f"{indent}{line}\n" for line in lines)


def boxed(name, text):
    inside = ["/opt/thing/venv/lib/python3.11/site-packages/strange/core.py:12 in run", "", "❱ 12 │   go()"]
    rows = "".join(f"│ {line:<76} │\n" for line in inside)
    return f"╭{' Traceback (most recent call last) ':─^78}╮\n{rows}╰{'─' * 78}╯\n{name}: {text}\n"


FORMS = {
    "alone": plain,
    "healthy before and after": lambda name, text: f"Loading weights\n{plain(name, text)}saved out.png\n",
    "the file of SD.Next": lambda name, text: (
        HEAD.format(1, "INFO", "Start") + HEAD.format(2, "ERROR", f"Load: {name}") + plain(name, text) + HEAD.format(3, "INFO", "on")
    ),
    "its console": lambda name, text: f"12:05:07-412896 ERROR    Processing: {name}\n{boxed(name, text)}12:05:08-000001 INFO     Done\n",
    "one line": lambda name, text: f"12:05:07-412896 ERROR    {name}: {text}\n",
    "critical": lambda name, text: HEAD.format(1, "CRITICAL", f"{text} {name}"),
    "ComfyUI": lambda name, text: f"got prompt\n!!! Exception during processing !!! {text}\n{plain(name, text)}\nPrompt executed in 1 s\n",
    "A1111": lambda name, text: f"*** Error completing request\n*** Arguments: ()\n{plain(name, text, '    ')}\n---\n",
    "Python's logging": lambda name, text: f"ERROR:root:it\n{plain(name, text)}",
    "after a warning, at the end": lambda name, text: f"12:05:07-412896 WARNING  Torch: slow\n{plain(name, text)}",
    "escapes": lambda name, text: "\x1b[31m" + plain(name, text).replace("\n", "\x1b[0m\r\n"),
    "chained": lambda name, text: (
        f"{plain('KeyError', 'x')}\nDuring handling of the above exception, another exception occurred:\n\n{plain(name, text)}"
    ),
    "cut at its beginning": lambda name, text: plain(name, text).split("\n", 1)[1],
    "broken at the edge of a window": lambda name, text: "".join(
        f"{line}\n" for whole in plain(name, text).splitlines() for line in (textwrap.wrap(whole, 70, drop_whitespace=False) or [""])
    ),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(name=CLASSES, text=TEXTS)
@example(name="Odd", text="")
@example(name="Odd", text="Error: 0, No module named 'x', INFO | done, falling back to nothing")
def test_an_unknown_failure_is_found(form, name, text):
    assert matcher.read([FORMS[form](name, text)])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_in_every_encoding(tmp_path, encoding):
    path = tmp_path / "x.log"
    path.write_text(FORMS["the file of SD.Next"]("Odd", "für 图片"), encoding=encoding)
    (found,) = matcher.read(logfile.blocks(path))
    assert "Odd: für 图片" in found.message


@pytest.mark.parametrize(
    "line",
    [
        "Segmentation fault (core dumped)",
        "./webui.sh: line 304: 92169 Aborted                 (core dumped) python launch.py",
        "terminate called after throwing an instance of 'c10::Error'",
        "Fatal Python error: Aborted",
        "Windows fatal exception: access violation",
        "Process finished with exit code -1073741819 (0xC0000005)",
        "The process exited with code 3221225477",
        "error: subprocess-exited-with-error",
        "ERROR: Failed building wheel for strange",
        "  × Failed to build `strange==1.0`",
        "Error: something that nobody has seen before",
        "torch._dynamo.exc.Unsupported: call to something",
        "worker-1  | strange.errors.NotReady: later",
    ],
)
def test_what_a_process_says_last(line):
    assert matcher.read([f"{line}\n"])


HEALTHY = {
    "a probe of a library": (
        "A library is looked for\nTraceback (most recent call last):\n"
        '  File "/venv/lib/python3.11/site-packages/xformers/__init__.py", line 57, in _is_triton_available\n'
        "    import triton  # noqa\nModuleNotFoundError: No module named 'triton'\nsaved out.png\n"
    ),
    "a warning with its traceback": (
        "12:05:07-412896 WARNING  Preview: failed once\n" + plain("OSError", "no thumbnail") + "12:05:08-000001 INFO     Done\n"
    ),
    "Ctrl-C": plain("KeyboardInterrupt", ""),
    "a retry": "Error while downloading from https://cas.example/x: The read operation timed out\nTrying to resume download...\n",
    "no errors": "errors: 0\nFinished with exit code 0\nerror_rate=0.0\nProcess exited with status 0\n",
    "warnings of libraries": (
        "C:\\venv\\Lib\\site-packages\\torch\\cuda\\__init__.py:5: UserWarning: CUDA error reporting is disabled\n  warnings.warn(\n"
        "FutureWarning: `clean_up_tokenization_spaces` was not set. It will be set to `True` by default.\n"
        "E0000 00:00:1740 1 cuda_dnn.cc:8310] Unable to register cuDNN factory: one has already been registered\n"
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_has_not_failed_is_no_finding(name):
    assert [found.message for found in matcher.read([HEALTHY[name]])] == []


def test_two_entries_are_never_read_as_one():
    log = "12:05:07-412896 WARNING  Cannot load the preview\n12:05:08-412896 INFO     because x_embedder.pos_embed expected shape\n"
    assert matcher.read([log]) == []


def test_what_is_known_of_the_unknown():
    text = textwrap.dedent("""\
        Traceback (most recent call last):
          File "/home/u/sdnext/modules/sd_models.py", line 3, in load_model
            go()
          File "/home/u/sdnext/extensions/sd-thing/scripts/thing.py", line 8, in hook
            go()
          File "/home/u/sdnext/venv/lib/python3.11/site-packages/diffusers/x.py", line 5, in from_pretrained
            raise Odd("no")
        diffusers.x.Odd: no
        """)
    failure = failure_of(text.splitlines())
    assert [(frame.kind, frame.owner) for frame in failure.innermost] == [
        ("program", "SD.Next"), ("extension", "sd-thing"), ("distribution", "diffusers")
    ]  # fmt: skip
    assert (failure.last.name, failure.last.text, failure.during) == ("diffusers.x.Odd", "no", "load")
    (found,) = matcher.read([text])
    assert found.rule == "unknown"
    for part in ("diffusers.x.Odd: no", "sd_models.py:3", "extension sd-thing (thing.py:8, hook)", "loaded"):
        assert part in found.message


def test_the_chain_begins_with_the_cause():
    failure = failure_of(FORMS["chained"]("Odd", "text").splitlines())
    assert [(one.name, one.text) for one in failure.chain] == [("KeyError", "x"), ("Odd", "text")]


@pytest.mark.parametrize(
    ("text", "status", "errno"),
    [
        ("requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: https://huggingface.co/a", 403, 0),
        ("httpx.HTTPStatusError: Server error '504 Gateway Time-out' for url 'https://hf-mirror.com/x'", 0, 0),
        ("OSError: [Errno 28] No space left on device: '/x/y'", 0, 28),
        ("OSError: [WinError 1314] A required privilege is not held by the client: 'C:\\\\a'", 0, 1314),
        ("RuntimeError: I/O error: No space (os error 112)", 0, 112),
    ],
)
def test_numbers_that_decide(text, status, errno):
    failure = failure_of([text])
    assert (failure.errno, failure.status or status) == (errno, status)


# Remedies branch on what was caught


def said_of(log):
    (found, *_) = matcher.read([log])
    return found.message + " " + found.remedy


KERNEL = (
    "NVIDIA GeForce X with CUDA capability sm_{} is not compatible with the current PyTorch installation.\n"
    "The current PyTorch install supports CUDA capabilities sm_70 sm_75 sm_80 sm_86 sm_90 sm_100.\n"
)
TIMEOUT = "requests.exceptions.ConnectTimeout: HTTPSConnectionPool(host='{}', port=443): timed out\n"


@pytest.mark.parametrize(
    ("log", "named", "unnamed"),
    [
        (KERNEL.format(61), "cu126", "RTX 50"),
        (KERNEL.format(120), "cu128", "cu126"),
        (KERNEL.format(37), "--use-directml", "cu1"),
        (TIMEOUT.format("hf-mirror.com"), "Leave the mirror", "enter a mirror"),
        (TIMEOUT.format("huggingface.co"), "enter a mirror", "Leave the"),
        ("ValueError: Unknown scheme for proxy URL URL('socks://127.0.0.1:1080/')\n", "socks5://", "licence"),
        ("Python 3.13.1\nERROR: Failed building wheel for sentencepiece\n", "Python 3.13", "compilers"),
        ("ERROR: Failed building wheel for insightface\n", "switch off the extension", "sentencepiece"),
        ("RuntimeError: expected m1 and m2 to have the same dtype, but got: c10::Half != c10::BFloat16\n", "(Half and BFloat16)", "?"),
        ("RuntimeError: mat1 and mat2 must have the same dtype\n", "different types", "("),
    ],
)
def test_the_remedy_is_that_of_what_was_caught(log, named, unnamed):
    said = said_of(log)
    assert named in said
    assert unnamed not in said


def test_a_mirror_that_the_log_has_named_is_remembered():
    error = "huggingface_hub.errors.LocalEntryNotFoundError: cannot find the requested files in the local cache.\n"
    assert "mirror.example.com" in said_of("HF_ENDPOINT=https://mirror.example.com\n" + error)


@pytest.mark.parametrize(
    ("text", "owner", "asker"),
    [
        ("'CLIPTextModel' object has no attribute 'text_model'", "transformers", "diffusers"),
        ("'Params4bit' object has no attribute 'bnb_quantized'", "bitsandbytes", "diffusers"),
    ],
)
def test_a_class_that_lacks_a_name_is_told_with_both_packages(text, owner, asker):
    frame = f'  File "/venv/lib/python3.11/site-packages/{asker}/x.py", line 1, in f\n    f()\n'
    (found,) = matcher.read([f"Traceback (most recent call last):\n{frame}AttributeError: {text}\n"])
    assert found.cause == "moved-name"
    assert owner in found.message
    assert asker in found.message


def test_an_extension_is_named_and_not_the_library():
    frame = '  File "/sd/extensions/sd-old/scripts/x.py", line 1, in f\n    f()\n'
    error = "AttributeError: 'StableDiffusion3Pipeline' object has no attribute 'x'\n"
    (found,) = matcher.read([f"Traceback (most recent call last):\n{frame}{error}"])
    assert "sd-old" in found.message
    assert "Do not change diffusers" in found.remedy
