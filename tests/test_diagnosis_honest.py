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
    for part in ("diffusers.x.Odd: no", "sd_models.py:3", "extensions/sd-thing (thing.py:8, hook)", "loaded"):
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


# Healthy logs of many programs, with what they always say

HEALTHY_PROGRAMS = {
    "A1111": """\
Python 3.10.6 (tags/v3.10.6:9c7b4bd, Aug  1 2022, 21:53:49) [MSC v.1932 64 bit (AMD64)]
Version: v1.10.1
Launching Web UI with arguments: --xformers
WARNING[XFORMERS]: xFormers can't load C++/CUDA extensions. Memory-efficient attention, SwiGLU, sparse and more won't be available.
C:\\webui\\venv\\lib\\site-packages\\timm\\models\\layers\\__init__.py:48: FutureWarning: Importing from timm.models.layers is deprecated
  warnings.warn(f"Importing from {__name__} is deprecated, please import via timm.layers", FutureWarning)
fatal: not a git repository (or any of the parent directories): .git
no module 'xformers'. Processing without...
No module 'xformers'. Proceeding without it.
Loading weights [6ce0161689] from C:\\webui\\models\\Stable-diffusion\\sd3_medium.safetensors
Running on local URL:  http://127.0.0.1:7860
Applying attention optimization: Doggettx... done.
100%|##########| 20/20 [00:05<00:00,  3.9it/s]
""",
    "Forge": """\
Version: f2.0.1v1.10.1-previous-659-gc055f2d4
Total VRAM 12288 MB, total RAM 32691 MB
xformers version: 0.0.27
WARNING:root:Triton not found; flop counting will not work for triton kernels
CUDA Using Stream: False
[GPU Setting] You will use 91.67% GPU memory (11263.00 MB) to load weights, and use 8.33% GPU memory (1024.00 MB) to do matrix computation.
ControlNet preprocessor location: C:\\forge\\models\\ControlNetPreprocessor
StateDict Keys: {'transformer': 1022, 'vae': 244, 'text_encoder': 0, 'ignore': 0}
IntegratedAutoencoderKL Unexpected: ['model_ema.decay', 'model_ema.num_updates']
[Unload] Trying to free 7725.00 MB for cuda:0 with 0 models keep loaded ... Done.
Token indices sequence length is longer than the specified maximum sequence length for this model (121 > 77). This will give errors
100%|##########| 20/20 [00:11<00:00,  1.8it/s]
""",
    "ComfyUI": """\
** ComfyUI startup time: 2025-01-20 18:20:41.112
** Python version: 3.12.7 (tags/v3.12.7:0b05ead) [MSC v.1941 64 bit (AMD64)]
Prestartup times for custom nodes:
Warning, you are using an old pytorch version and some ckpt/pt files might be loaded unsafely. Upgrading to 2.4 or above is recommended.
[WARNING] Could not find a font, falling back to the default
FETCH ComfyRegistry Data [DONE]
[ComfyUI-Manager] default cache updated: https://api.comfy.org/nodes
clip missing: ['text_projection.weight']
no CLIP/text encoder weights in checkpoint, the text encoder model will not be loaded.
lora key not loaded: lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha
Warning: Ran out of memory when regular VAE decoding, retrying with tiled VAE decoding.
got prompt
Prompt executed in 21.30 seconds
""",
    "InvokeAI": """\
[2025-03-09 08:50:40,853]::[InvokeAI]::INFO --> Patchmatch initialized
[2025-03-09 08:50:41,853]::[uvicorn.error]::INFO --> Started server process [4120]
[2025-03-09 08:50:41,953]::[uvicorn.error]::INFO --> Application startup complete.
[2025-03-09 08:50:42,853]::[InvokeAI]::WARNING --> Port 9090 in use, using port 9091
>> xformers not installed, using torch-sdp
[2025-03-09 08:50:47,853]::[ModelLoadService]::INFO --> Loaded model in 4.20s onto cuda device
""",
    "SD.Next": """\
2026-07-23 19:21:20,419 | pc | sd | INFO | sd_models | Starting SD.Next
2026-07-23 19:21:21,419 | pc | sd | WARNING | installer | Running GIT reset
2026-07-23 19:21:22,419 | pc | sd | WARNING | sd_models | Model metadata: file="metadata.json" corrupt: missing
2026-07-23 19:21:23,419 | pc | sd | DEBUG | errors | Traceback of the last retry: RuntimeError: not shown
2026-07-23 19:21:24,419 | pc | sd | WARNING | hf | HF_TOKEN not set, requests may be limited
2026-07-23 19:21:25,419 | pc | sd | INFO | processing | Processed: images=1 its=2.00 retries=0 oom=0
""",
    "a script": """\
/venv/lib/python3.11/site-packages/transformers/tokenization_utils_base.py:1601: FutureWarning: `clean_up_tokenization_spaces` was not set.
You set `add_prefix_space`. The tokenizer needs to be converted from the slow tokenizers
`torch_dtype` is deprecated! Use `dtype` instead!
Keyword arguments {'safety_checker': None} are not expected by StableDiffusion3Pipeline and will be ignored.
Some weights of the model checkpoint were not used when initializing CLIPTextModel: ['text_model.embeddings.position_ids']
The config attributes {'dual_attention_layers': ()} were passed to SD3Transformer2DModel, but are not expected and will be ignored.
Couldn't connect to the Hub: (ReadTimeoutError("HTTPSConnectionPool(host='huggingface.co', port=443): Read timed out."), '(Request ID: 1)').
Will try to load from local cache.
The installed version of bitsandbytes was compiled for CUDA 12.4; the driver offers 12.6
100%|##########| 28/28 [00:14<00:00,  1.95it/s]
""",
}


@pytest.mark.parametrize("program", HEALTHY_PROGRAMS)
def test_a_healthy_program_has_no_finding(program):
    assert [found.message for found in matcher.read([HEALTHY_PROGRAMS[program]])] == []


@pytest.mark.parametrize(
    "line",
    [
        "ERROR: Could not install packages due to an OSError: [Errno 2] No such file or directory: '/opt/venv/lib/x/models/y.json'",
        "ERROR: Could not install packages due to an OSError: [Errno 30] Read-only file system: '/opt/venv/x'",
        "ERROR: Could not install packages due to an OSError: [WinError 3] The system cannot find the path: 'C:\\\\venv\\\\models\\\\x'",
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    ],
)
def test_what_pip_could_not_write_is_told_in_a_sentence(line):
    (found,) = matcher.read([f"{line}\n"])
    assert found.rule != "unknown"
    assert "{" not in found.message + found.remedy


def test_a_rule_that_fails_itself_hides_no_failure(monkeypatch):
    def broken(failure, seen):
        raise KeyError("path")

    monkeypatch.setattr(matcher, "JUDGES", (broken,))
    (found,) = matcher.read([plain("Odd", "it")])
    assert found.rule == "unknown"


def test_the_library_that_is_missing_is_named_as_it_is():
    (found,) = matcher.diagnose("ImportError: libGL.so.1: cannot open shared object file: No such file or directory")
    assert "libGL.so.1" in found.message
    assert "r: " not in found.message + found.remedy


@pytest.mark.parametrize(
    "log",
    [
        "Exception ignored in: <function tqdm.__del__ at 0x7f>\n" + plain("AttributeError", "'tqdm' object has no attribute 'pos'"),
        "Exception in callback _ProactorBasePipeTransport._call_connection_lost(None)\n"
        "handle: <Handle _ProactorBasePipeTransport._call_connection_lost(None)>\n"
        + plain("ConnectionResetError", "[WinError 10054] An existing connection was forcibly closed by the remote host"),
        "^C" + plain("KeyboardInterrupt", ""),
        "sdnext exited with code 143\n",
    ],
)
def test_an_end_that_was_asked_for_and_a_browser_that_has_gone_are_no_failure(log):
    assert matcher.read([log]) == []


def test_a_failure_below_a_line_that_only_informs_is_its_own():
    log = (
        "09:15:01-001122 INFO     Torch: torch==2.9.1+cu128\n"
        'docker: Error response from daemon: could not select device driver "nvidia" with capabilities: [[gpu]].\n'
    )
    assert [one.rule for one in matcher.read([log])] == ["unknown"]
    traceback = "09:15:01-001122 INFO     Starting SD.Next\n" + plain("MoonError", "full")
    assert "MoonError: full" in matcher.read([traceback])[0].message


def test_pip_has_not_found_what_it_could_not_ask_for():
    log = (
        "Could not fetch URL https://pypi.org/simple/bitsandbytes/: There was a problem confirming the ssl certificate: … - skipping\n"
        "ERROR: Could not find a version that satisfies the requirement bitsandbytes (from versions: none)\n"
        "ERROR: No matching distribution found for bitsandbytes\n"
    )
    assert {one.rule for one in matcher.read([log])} == {"server-unreachable"}


@pytest.mark.parametrize(("log", "rule"), [
    ("ERROR: Could not install packages due to an OSError: [Errno 2] No such file or directory: 'C:\\\\sdnext\\\\venv\\\\torch\\\\a.h'\n"
     "HINT: This error might have occurred since this system does not have Windows Long Path support enabled.\n", "path-too-long"),
    ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (333x4096 and 1x8388608)\n", "weights-packed"),
    ("ImportError: dlopen(/venv/site-packages/torch/_C.cpython-312-darwin.so, 0x0002): tried: '/venv/site-packages/torch/_C.so'"
     " (mach-o file, but is an incompatible architecture (have 'x86_64', need 'arm64'))\n", "library-not-loaded"),
    ("The following part of your input was truncated because CLIP can only handle sequences up to 77 tokens: ['out of memory']\n", ""),
])  # fmt: skip
def test_what_is_meant_and_not_what_is_quoted(log, rule):
    assert [one.rule for one in matcher.read([log])] == ([rule] if rule else [])
