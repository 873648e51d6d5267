# ruff: noqa: E501 (lines of logs are as long as they are)
from __future__ import annotations

import ast
import base64
import html
import json
import os
import re
import string
import sys
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import sd3deploy.redact
from sd3deploy.redact import PLACEHOLDER, Redactor
from tests.waiting import HANG

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
redact = Redactor()
ALNUM = string.ascii_letters + string.digits


def characters(alphabet, least, most):
    return st.text(alphabet, min_size=least, max_size=most)


def mixed(least, most, alphabet=ALNUM):
    """With a letter and a digit."""
    return characters(alphabet, least - 2, most - 2).map(lambda text: f"q{text}7")


# Tokens that are recognized by themselves, wherever they stand.
SHAPED = st.one_of(
    characters(ALNUM, 30, 34).map("hf_{}".format),
    characters(ALNUM, 36, 36).flatmap(lambda rest: st.sampled_from(["ghp_", "gho_", "ghs_"]).map(lambda start: start + rest)),
    characters(ALNUM + "_", 60, 82).map("github_pat_{}".format),
    mixed(40, 48).map("sk-{}".format),
    mixed(60, 90, ALNUM + "-_").map("sk-proj-{}".format),
    characters(string.ascii_uppercase + string.digits, 16, 16).map("AKIA{}".format),
    characters(string.digits, 11, 12).map("xoxb-{}-AbCdEfGh".format),
    characters(ALNUM + "-_", 35, 35).map("AIza{}".format),
    characters(ALNUM + "-_", 10, 30).map(lambda text: f"eyJhbGciOi{text}.eyJzdWIi{text}.{text}"),
    mixed(32, 64),
    mixed(32, 64, "0123456789abcdef"),
)
# Passwords that nothing but their place betrays.
PASSWORD = st.text("abcXYZ019!#$%*+-./=?^_~:|@", min_size=8, max_size=20).filter(lambda text: not re.search(r"^[-:=$.?*]|[%:]$|^<", text))
ANY_PASSWORD = st.text(string.ascii_letters + string.digits + "!\"#$%&'()*+,-./:;=?@[\\]^_`{|}~ äß€", min_size=8, max_size=20).map(
    lambda text: f"A{text.strip()}z"
)
NAME = st.from_regex(r"[A-Za-zÄÖÜäöüéñøłЖ中][a-zäöüéñøłж中0-9._-]{3,14}(?: [A-Z][a-zé]{3,10})?", fullmatch=True).filter(
    lambda name: name.lower().split()[0] not in ("public", "shared", "default") and name[-1] not in "._-"
)
EMAIL = st.from_regex(
    r"[a-zA-Zäöüé0-9][a-zA-Zäöüé0-9._+-]{2,20}[a-z0-9]@[a-zäöü0-9]{3,10}(?:\.[a-z0-9]{2,8}){0,2}\.(?:com|de|org|co\.uk|museum|中国)",
    fullmatch=True,
)
AROUND = st.text(string.ascii_letters + string.digits + " .,:;=/\\\"'()[]{}<>-_@%&?|~\n\té", max_size=40)
NAMED = st.sampled_from(
    [
        "password",
        "PASSWORD",
        "db_password",
        "userPassword",
        "passwd",
        "pwd",
        "token",
        "hf_token",
        "HF_TOKEN",
        "accessToken",
        "access_token",
        "api_key",
        "apiKey",
        "API-KEY",
        "secret",
        "client_secret",
        "civitai_token",
        "private_key",
        "auth",
        "x-api-key",
    ]
)
# Where a secret of that name may stand: (name, secret) → text.
PLACES = {
    "json": lambda name, secret: json.dumps({name: secret, "width": 1024}),
    "json in json": lambda name, secret: json.dumps({"log": json.dumps({name: secret, "width": 1024})}),
    "repr": lambda name, secret: repr({name: secret, "width": 1024}),
    "call": lambda name, secret: f"f({re.sub('-', '_', name)}={secret!r}, width=1024)",
    "yaml": lambda name, secret: f"server:\n  {name}: {secret}\nwidth: 1024",
    "yaml quoted": lambda name, secret: f"{name}: {json.dumps(secret)}\nwidth: 1024",
    "toml": lambda name, secret: f"{name} = {json.dumps(secret)}\n",
    "environment": lambda name, secret: f"export {name}={secret}\n",
    "flag": lambda name, secret: f"python launch.py --{name} {secret} --listen",
    "flag =": lambda name, secret: f"python launch.py --{name}={secret} --listen",
    "arguments": lambda name, secret: f"Command line args: {['--listen', f'--{name}', secret]!r}",
    "arguments =": lambda name, secret: f"Command line args: {['--listen', f'--{name}={secret}']!r}",
    "url": lambda name, secret: f"GET https://civitai.com/api/download/models/1?type=Model&{name}={quote(secret, safe='')}&width=1024",
    "encoded url": lambda name, secret: quote(f"https://a.b/c?{name}={quote(secret, safe='')}&width=1024", safe=""),
    "log": lambda name, secret: f"2026-11-26 00:20:26,123 | sd | INFO | hub | Download: {name}={secret} time=1.2",
    "headers": lambda name, secret: f"{[(name, secret), ('accept', '*')]!r}",
}


def spelled(secret):
    """How it could be copied out of a text."""
    forms = {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        html.escape(secret),
    }
    return forms | {json.dumps(secret, ensure_ascii=False)[1:-1], quote(quote(secret, safe=""), safe="")}


def gone(secret, text):
    assert not [form for form in spelled(secret) if form in text], text
    assert secret not in unquote(text)
    assert redact(text) == text


@FUZZ
@given(SHAPED, AROUND, AROUND)
def test_a_token_is_recognized_in_any_text(secret, before, after):
    before, after = f"{before} ", f" {after}"
    for text in (
        f"{before}{secret}{after}",
        f"{before}'{secret}'{after}",
        f"{before}/models/{secret}/x{after}",
        f"{before}={secret}&{after}",
    ):
        found = redact(text)
        gone(secret, found)
        assert found.count("\n") == text.count("\n")


@FUZZ
@given(NAMED, SHAPED | PASSWORD, st.sampled_from(sorted(PLACES)), AROUND, AROUND)
@example("password", "p@ss:w/rd%x", "url", "", "")
@example("token", "abcdefgh", "log", "", "")
def test_what_a_name_announces_is_hidden(name, secret, place, before, after):
    assume(secret not in before + after)
    found = redact(f"{before.replace(chr(34), '').replace(chr(39), '')}\n{PLACES[place](name, secret)}\n{after}")
    gone(secret, found)


@FUZZ
@given(st.sampled_from(["password", "db_password", "secret", "passphrase"]), ANY_PASSWORD)
@pytest.mark.parametrize("place", ["json", "json in json", "repr", "yaml", "yaml quoted", "toml", "url", "encoded url", "arguments"])
def test_a_password_may_have_any_sign(place, name, secret):
    gone(secret, redact(PLACES[place](name, secret)))


@FUZZ
@given(ANY_PASSWORD | PASSWORD | SHAPED, AROUND, AROUND)
def test_a_secret_that_is_known_is_hidden_in_every_spelling(secret, before, after):
    known = Redactor([secret])
    for form in spelled(secret):
        found = known(f"{before}{form}{after}")
        assert form not in found
        assert known(found) == found


@FUZZ
@given(EMAIL, AROUND, AROUND)
def test_addresses_are_hidden(address, before, after):
    for text in (
        f"{before} {address} {after}",
        f"{before}<{address}>{after}",
        f"mailto:{address}",
        f"?to={quote(address)}&x",
        json.dumps([address]),
        f"Author: Jo <{address}>,",
    ):
        found = redact(text)
        gone(address, found)
        assert address.rpartition("@")[0] not in found or len(address.rpartition("@")[0]) < 6


FOLDERS = {
    "linux": lambda name: f'File "/home/{name}/sdnext/webui.py", line 3, in <module>',
    "mac": lambda name: f"/Users/{name}/Library/Caches",
    "windows": lambda name: f"C:\\Users\\{name}\\sdnext\\webui.py",
    "windows repr": lambda name: repr(f"C:\\Users\\{name}\\sdnext"),
    "windows json": lambda name: json.dumps({"path": f"C:\\Users\\{name}\\sdnext"}),
    "windows json twice": lambda name: json.dumps(json.dumps({"path": f"C:\\Users\\{name}\\sdnext"})),
    "slashes": lambda name: f"C:/Users/{name}/sdnext",
    "file": lambda name: f"file:///C:/Users/{quote(name)}/sdnext",
    "encoded": lambda name: quote(f"/home/{name}/sdnext", safe=""),
    "network": lambda name: f"\\\\server\\Users\\{name}\\sdnext",
    "wsl": lambda name: f"/mnt/c/Users/{name}/sdnext",
    "old": lambda name: f"C:\\Documents and Settings\\{name}\\sdnext",
    "quoted end": lambda name: f"cwd='/home/{name}'",
    "list": lambda name: repr([f"/home/{name}/a", f"/home/{name}"]),
}


@FUZZ
@given(NAME, st.sampled_from(sorted(FOLDERS)))
@example("Jane Doe", "windows")
@example("J\u00fcrgen M\u00fcller", "windows json")
def test_names_of_folders_are_hidden(name, place):
    found = redact(FOLDERS[place](name))
    for form in (name, quote(name), json.dumps(name)[1:-1], name.split()[-1]):
        assert form not in found
    assert "<user>" in found
    assert redact(found) == found


@pytest.mark.parametrize("text", ["~jane/sdnext", "jane@desktop:~/sdnext$ ls", "/media/jane/disk", "USER=jane", '{"username": "jane"}'])
def test_other_places_of_a_name(text):
    assert "jane" not in redact(text)
    assert "<user>" in redact(text)


@FUZZ
@given(NAME, AROUND)
def test_a_user_who_is_known_is_hidden_everywhere(name, around):
    known = Redactor(users=[name])
    for text in (
        f"{around} {name} {around}",
        f"D:\\{name}\\x",
        f"owner={name}",
        f"/mnt/{name}/x",
        f"%2F{quote(name)}%2F",
        json.dumps(f"D:\\{name}\\x"),
    ):
        found = known(text)
        assert name not in found
        assert known(found) == found


def test_a_known_name_is_only_replaced_as_a_word():
    known = Redactor(users=["ann", "li"], hosts=["box-1"])
    assert known("ann planned /data/li/x on box-1, list of manners: ann_models") == (
        "<user> planned /data/<user>/x on <host>, list of manners: <user>_models"
    )


@pytest.mark.parametrize("word", ["user", "token", "password", "secret", "email", "host", "key"])
def test_who_is_called_like_a_placeholder(word):
    known = Redactor([f"{word}x", word], [word], [word])
    once = known(f"a {word} b <user> <token> <password> /home/{word}/x")
    assert known(once) == once


KEY = "\n".join(
    ["-----BEGIN RSA PRIVATE KEY-----", *["MIIEowIBAAKCAQEAx" + "aB+/9" * 9 + "xy"] * 5, "AbC=", "-----END RSA PRIVATE KEY-----"]
)


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        json.dumps({"x": KEY}),
        "\n".join(KEY.split("\n")[:4]),
        "\n".join(KEY.split("\n")[3:]),
        "\n".join(KEY.split("\n")[2:4]),
        KEY.replace("RSA ", "OPENSSH "),
        KEY.replace("\n", "\r\n"),
    ],
)
def test_private_keys_go_as_a_whole(text):
    found = redact(f"before\n{text}\nafter")
    assert "aB+/9" not in found
    assert "MIIE" not in found
    assert found.startswith("before\n")
    assert found.endswith("\nafter")
    assert found.count("\n") == text.count("\n") + 2
    assert redact(found) == found


def test_a_key_over_the_lines_of_an_evidence():
    found = redact.value({"evidence": ["before", *KEY.split("\n"), "after"]})["evidence"]
    assert len(found) == KEY.count("\n") + 3
    assert "MIIE" not in "".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer <token>"),
        ("'Authorization': 'Basic am9lOnB3', 'x': 1", "'Authorization': 'Basic <token>', 'x': 1"),
        ("curl -u joe:pw http://x", "curl -u <user>:<password> http://x"),
        ("Cookie: session=abc; theme=dark", "Cookie: <cookie>"),
        ("https://joe:p@ss@host.com/x", "https://<user>:<password>@host.com/x"),
        ("https://joe:pa/ss@host.com/x", "https://<user>:<password>@host.com/x"),
        ("http://127.0.0.1:7860/file@2", "http://127.0.0.1:7860/file@2"),
        ("--auth joe:pw --listen", "--auth <password> --listen"),
        ("--api-auth=joe:pw", "--api-auth=<password>"),
        ("password: my own phrase", "password: <password>"),
        ("hooks.slack.com/services/T0/B0/abc", "hooks.slack.com/services/<token>"),
        ("f(token: Optional[str] = 'abcd')", "f(token: Optional[str] = '<token>')"),
        ("auth=('joe', 'p)w')", "auth=<password>"),
        ("--auth joe:pw1x,jane:pw2x --listen", "--auth <password> --listen"),
        ("{&quot;password&quot;: &quot;a b&quot;, &quot;w&quot;: 1}", "{&quot;password&quot;: &quot;<password>&quot;, &quot;w&quot;: 1}"),
        ("%2522password%2522%253A%2522abc%2522", "%2522password%2522%253A%2522<password>%2522"),
        ("Running on public URL: https://a1b2c3d4e5f6a7b8.gradio.live", "Running on public URL: https://<token>.gradio.live"),
        ("C:\\Users\\Maria da Silva Santos e Souza\\x", "C:\\Users\\<user>\\x"),
        ("<api_key>abc</api_key> <width>12</width>", "<api_key><token></api_key> <width>12</width>"),
        ("**token**: abcd, token -> abcd, token%20=%20abcd", "**token**: <token>, token -> <token>, token%20=<token>"),
        ("The password is Hunter2xQ. The token is missing.", "The password is <password> The token is missing."),
        ("sshpass -p hunter ssh x", "sshpass -p <password> ssh x"),
        ("redis://:pw@host:1", "redis://<user>:<password>@host:1"),
        ("AccountKey=abc/+==;EndpointSuffix=x", "AccountKey=<token>;EndpointSuffix=x"),
        ('$env:HF_TOKEN = "abc"', '$env:HF_TOKEN = "<token>"'),
        ("?Expires=17&Policy=eyJTdGF0ZW1lbnQiOlt7&Signature=ab~c-d__", "?Expires=17&Policy=<token>&Signature=<token>"),
        (f"basic {base64.b64encode(b'joe:pw').decode()}", "basic <token>"),
        ("password: <password> token=abcdefgh1", "password: <password> token=<token>"),
        ("password:abc def", "password:<password> def"),
        ("j%C3%B6rg@example.org", "<email>"),
        ("discordapp.com/api/webhooks/1/abc", "discordapp.com/api/webhooks/<token>"),
        ("password2=abcdefg token_value=abcdefg", "password2=<password> token_value=<token>"),
        ("x\\nkey=abc123def456 PHPSESSID=abcdefgh", "x\\nkey=<token> PHPSESSID=<token>"),
        ("key=abcdefghijklmnopqrstuvwxyzabcd", "key=<token>"),
        ("Cookie: shared.id=abc; x=1", "Cookie: <cookie>"),
        ('cmd="--auth joe:pw1 --listen"', 'cmd="--auth <password> --listen"'),
        ('Authorization: Digest username="joe", response="abc"', "Authorization: Digest <token>"),
        ("Authorization=Bearer+abc.def1", "Authorization=Bearer+<token>"),
        ("to=https%3A%2F%2Fjoe%3Apw1%40host.de", "to=https%3A%2F%2F<user>:<password>%40host.de"),
        ("sZaB3xK9-mQ2wE7rT5yU1iO8pL_kJ6hG4fD0sA", "<token>"),
        ('"jane doe"@example.org', "<email>"),
        ("C:%255CUsers%255Cjane%255Cx", "C:%255CUsers%255C<user>%255Cx"),
        ("/home/jane\\ doe/x C:\\Users\\Doe, Jane\\x", "/home/<user>/x C:\\Users\\<user>\\x"),
        ("C:\\Users\\Miles O'Brien\\x", "C:\\Users\\<user>\\x"),
        ("C:\\Users\\Jane Doe", "C:\\Users\\<user>"),
        ("C:/Documents%20and%20Settings/jane/x", "C:/Documents%20and%20Settings/<user>/x"),
        ("C:\\Dokumente und Einstellungen\\Jane\\x", "C:\\Dokumente und Einstellungen\\<user>\\x"),
    ],
)
def test_spellings(text, expected):
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("start", "rest"),
    [
        *((start, "abcdefghijabcdefghij1b") for start in ("api_org_", "gho_", "github_pat_", "glpat-", "dckr_pat_", "sk-ant-", "xapp-")),
        *((start, "abcdefghijabcdefghij1b") for start in ("sk_live_", "rk_test_", "ya29.", "npm_", "pypi-", "r8_", "AIza")),
        ("sk-", "abcdefghijabcdefghij"),
        ("hf_", "AbCdEf"),
        ("ASIA", "ABCDEFGHIJKL1234"),
        ("SG.", "abcdefghijk.abcdefghijk"),
        ("123456789:AA", "abcdefghij-" * 3),
        ("xoxp-", "12345678"),
    ],
)
def test_a_token_is_known_by_its_beginning(start, rest):
    assert redact(f"a '{start}{rest}', b") == "a '<token>', b"
    assert redact(f"a%20{start}{rest}%20b") == "a%20<token>%20b"


# Lines of SD.Next's log, of tracebacks and of pip.
KEPT = """\
2026-11-26 00:20:26,123 | sd | INFO | launch | Starting SD.Next
2026-11-26 00:20:26,223 | sd | INFO | installer | Platform: arch=x86_64 cpu= system=Linux release=6.8.0-45-generic python=3.11.7 docker=False
2026-11-26 00:20:26,323 | sd | INFO | installer | Version: app=sd.next updated=2026-11-20 commit=a1b2c3d4 branch=master url=https://github.com/vladmandic/sdnext/tree/master kanvas=main
2026-11-26 00:20:27,323 | sd | INFO | launch | Command line args: ['--listen', '--auth-file', 'auth.txt', '--medvram'] medvram=True auth=None
2026-11-26 00:20:28,004 | sd | INFO | installer | Install: package="bitsandbytes==0.48.1" mode=pip
2026-11-26 00:20:29,004 | sd | INFO | devices | Device detect: memory=8.0 default=balanced optimization=highvram capability=(8, 6) dtype=torch.bfloat16
2026-11-26 00:20:31,004 | sd | DEBUG | sd_models | Setting: key=sd_model_checkpoint value=stabilityai/stable-diffusion-3.5-medium
2026-11-26 00:20:31,014 | sd | DEBUG | sd_models | Load model: name="sd3.5_large_turbo-FP8-E4M3FN-T5XXL-Q4_K_M.safetensors" size=16457.21MB hash=ffef7a279d
2026-11-26 00:20:32,004 | sd | WARNING | hf | pad_token='<pad>' eos_token_id=2 max_tokens=77 tokens: 256 tokenizer=T5TokenizerFast token=None
2026-11-26 00:20:33,004 | sd | ERROR | model_sd3 | Error(s) in loading state_dict: missing key(s): "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
2026-11-26 00:20:33,104 | sd | INFO | api | Browser session: user=None client=127.0.0.1 agent=Mozilla/5.0 (X11; Linux x86_64)
Traceback (most recent call last):
  File "/opt/sdnext/modules/sd_models.py", line 214, in load_diffuser
    sd_model = diffusers.StableDiffusion3Pipeline.from_pretrained(path, token=token, cache_dir=shared.opts.diffusers_dir, **kwargs)
  File "/opt/sdnext/venv/lib/python3.11/site-packages/huggingface_hub/utils/_validators.py", line 114, in _inner_fn
    token = kwargs.pop("token", None)
KeyError: 'text_encoder_3.encoder.block.12.layer.1.DenseReluDense.wo.weight'
RuntimeError: The size of tensor a (333) must match the size of tensor b (1024) at non-singleton dimension 1
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 7.79 GiB of which 512.00 MiB is free. Process 12345 has 6.10 GiB memory in use.
ImportError: cannot import name 'broadcast_to' from 'numpy.lib.stride_tricks' (/opt/sdnext/venv/lib/python3.11/site-packages/numpy/lib/stride_tricks.py)
OSError: /opt/venv/lib/python3.11/site-packages/torchvision/_C.so: undefined symbol: _ZN3c106detail14torchCheckFailEPKcS2_jS2_
ImportError: undefined symbol: _ZNK3c1010TensorImpl27throw_data_ptr_access_errorEv, _ZN2at4_ops5zeros4callEN3c108ArrayRefINS2_6SymIntEEENS2_8optionalINS2_10ScalarTypeEEE
Using `bitsandbytes` 4-bit quantization requires the latest version of bitsandbytes: `pip install -U bitsandbytes>=0.46.1`
ERROR: pip's dependency resolver does not currently take into account all the packages that are installed: google-auth==2.23.0, tokenizers==0.22.1
sd3deploy @ file:///opt/src/sd3 diffusers @ git+https://github.com/huggingface/diffusers@v0.36.0 checkout@v4 pkg@1.2.3
WARNING: Ignoring invalid distribution ~umpy (/opt/venv/lib/python3.11/site-packages) @torch.no_grad() logo@2x.png git@github.com:vladmandic/sdnext.git
Token: valid, invalid token: expired, HF token: not found, password: required, Expected 77 tokens: got 80, keyword: abc123def, author: Jane
("diffusers", "StableDiffusion3ControlNetInpaintingPipeline"): key = str(getattr(backend, "requirement", backend)) state: key=sd3_medium_fp4_v2
ssh://git@github.com/x --auth --listen auth=[] token=() token=$HF_TOKEN token=[MASK] ["token", "password"] key='x!y' key=12.5 key=[1, 2, abc123def]
ImportError: undefined symbol: _ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE9_M_createERmm next=key%3A%2F%2Fabc123def token == 'abcdefgh'
("key", "abc123def456") "keys": ["encoder.a1b2c3d4e5f6"] ["cookie", "proxy-authorization"] token=0.75 The token is Ab1
undefined symbol: _ZNSt6vectorIN3c1010TensorImplESaIS1_EE9push_backEOS1_
opt/sdnext/models/diffusers/stabilityai/sd3medium/textencoder3/snapshots
Progress  12.31s/it ████████████████ 100% 28/28 00:12 00:00 Base 1024x1024 steps=28 cfg=4.5 seed=3141592653 sampler="Euler FlowMatch"
"""


@pytest.mark.parametrize("line", KEPT.splitlines())
def test_what_a_failure_is_understood_by_stays(line):
    assert redact(line) == line


GOLDEN = """\
2026-11-26 00:20:27,323 | sd | INFO | launch | Command line args: ['--listen', '--auth', 'jane:hunter2', '--token', 'hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345']
2026-11-26 00:20:28,323 | sd | INFO | paths | Data: "/home/jane/sdnext" models=C:\\Users\\Jane Doe\\models width=1024
Traceback (most recent call last):
  File "/home/jane/sdnext/venv/lib/python3.11/site-packages/requests/models.py", line 1021, in raise_for_status
    raise HTTPError(http_error_msg, response=self)
requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://civitai.com/api/download/models/691639?type=Model&token=0123456789abcdef0123456789abcdef
Contact jane.doe+sd@example.org, proxy http://jane:s3cret@proxy.local:3128
"""
READ = """\
2026-11-26 00:20:27,323 | sd | INFO | launch | Command line args: ['--listen', '--auth', '<password>', '--token', '<token>']
2026-11-26 00:20:28,323 | sd | INFO | paths | Data: "/home/<user>/sdnext" models=C:\\Users\\<user>\\models width=1024
Traceback (most recent call last):
  File "/home/<user>/sdnext/venv/lib/python3.11/site-packages/requests/models.py", line 1021, in raise_for_status
    raise HTTPError(http_error_msg, response=self)
requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://civitai.com/api/download/models/691639?type=Model&token=<token>
Contact <email>, proxy http://<user>:<password>@proxy.local:3128
"""


def test_a_log_stays_readable():
    assert redact(GOLDEN) == READ


@FUZZ
@given(
    st.lists(
        AROUND
        | SHAPED
        | PASSWORD
        | EMAIL
        | NAME
        | st.sampled_from(["/home/", "token=", "password: ", "://", "@", "--auth ", "<user>", "C:\\Users\\", "'", '"']),
        max_size=12,
    )
)
def test_what_is_redacted_stays_as_it_is(parts):
    known = Redactor(["AbC12345"], ["jane"])
    once = known("".join(parts))
    assert known(once) == once
    assert known.value([once, {"x": once}]) == [once, {"x": once}]


@FUZZ
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | AROUND,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(AROUND, inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_value_is_jsonable_afterwards(value):
    json.dumps(redact.value(value), allow_nan=False)


@FUZZ
@given(NAMED, ANY_PASSWORD)
def test_values_under_a_secret_name(name, secret):
    found = redact.value(
        {"a": [{name: secret}, {name: [secret, {"x": secret}]}, {"key": name, "value": secret}], "argv": [f"--{name}", secret]}
    )
    assert secret not in json.dumps(found, ensure_ascii=False)


def test_values_that_are_none_stay():
    kept = {
        "token_merging_ratio": 0.5,
        "hf_token": None,
        "auth": False,
        "max_tokens": 77,
        "tokenizer": "T5",
        "password": "",
        "keys": ["a.b.c"],
    }
    assert redact.value(kept) == kept
    assert redact.value({"password": 12345678, "x": (1, "hf_" + "a1" * 17)}) == {"password": "<password>", "x": [1, "<token>"]}


def test_colours_do_not_hide_a_secret():
    assert "AbCdEf" not in redact("hf_\x1b[1mAbCdEf0123456789AbCdEf\x1b[0m x")
    assert redact("\x1b[31mERROR\x1b[0m ok") == "ERROR ok"


HARD = {
    "letters": "a", "at": "a@", "addresses": "a@a.", "urls": "://a:", "names": "token", "quotes": 'password="', "escapes": 'pw=\\"', "brackets": "auth=(",
    "folders": "/home/a ", "capitals": "/Users/A B", "begin": "-----BEGIN PRIVATE KEY-----", "end": "AA\n-----END PRIVATE KEY-----", "jwt": "eyJabcde.", "mixed": "aB1-",
    "blanks": "auth    ", "codes": "%2F", "encoded": "%3A%2F%2Fa", "placeholders": "<token>", "lines": "\n", "flags": "--auth -", "keys": "key_", "unicode": "\\u00e4",
}  # fmt: skip


@pytest.mark.timeout(HANG)  # measured: 2 s (bench/diagnosis.py); what grew with the square of the length would take a quarter of an hour
@pytest.mark.parametrize("kind", HARD)
def test_a_megabyte_of_what_is_hard_hangs_nothing(kind):
    assert redact(HARD[kind] * (1_000_000 // len(HARD[kind])))


def test_the_secrets_of_this_machine(tmp_path):
    home, data = tmp_path / "janedoe", tmp_path / "data"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    data.mkdir()
    (home / ".cache" / "huggingface" / "token").write_text("plain-words-as-token\n")
    (home / ".cache" / "huggingface" / "stored_tokens").write_text("[mine]\nhf_token = other-words-as-token\n")
    (data / "secrets.json").write_text(
        json.dumps(
            {"civitai_token": "words of civitai", "nested": {"api_key": ["in a list"]}, "mask_token": "[MASK]", "vae": "not this one"}
        )
    )
    (data / "config.json").write_text("{ half-written")
    environ = {
        "HOME": str(home),
        "USER": "janedoe",
        "MY_API_KEY": "words of a key",
        "TOKENIZERS_PARALLELISM": "false",
        "SOME_TOKEN": "true",
        "SHORT_KEY": "1234567",
        "KEY_FILE": str(data),
        "HTTPS_PROXY": "http://u:words-of-proxy@p:1",
    }
    known = Redactor.of_this_machine([data], environ)
    text = "plain-words-as-token other-words-as-token words of civitai in a list words of a key words-of-proxy janedoe"
    assert known(text).replace("<secret>", "").replace("<user>", "").split() == []
    assert known("true false not this one 1234567 [MASK]") == "true false not this one 1234567 [MASK]"
    assert "<secret>" not in known(str(data))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no database of accounts to ask")
def test_a_user_whose_name_only_the_database_of_accounts_knows(tmp_path, monkeypatch):
    import pwd

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "SUDO_USER", "HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    account = pwd.struct_passwd(("janedoe", "x", os.getuid(), 0, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: account)
    assert Redactor.of_this_machine([tmp_path])("for janedoe") == "for <user>"
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])  # an account without a name, as in containers
    assert Redactor.of_this_machine([tmp_path])("for janedoe") == "for janedoe"


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900], ids=["lists", "objects", "whole"])
def test_a_file_of_settings_that_is_nested_deeply_hides_no_secret_of_the_next(tmp_path, deep):
    (tmp_path / "config.json").write_text(deep)
    (tmp_path / "secrets.json").write_text('{"civitai_token": "words of civitai"}')
    assert Redactor.of_this_machine([tmp_path], {})("words of civitai") == "<secret>"


def test_a_machine_without_anything(tmp_path):
    assert Redactor.of_this_machine([tmp_path / "missing"], {})("a user of this") == "a user of this"


@pytest.mark.parametrize(
    "form",
    [
        "p@s s&w<ö/x",
        "p@s%20s%26w%3C%c3%b6/x",
        "p%40s+s%26w%3C%C3%B6%2Fx",
        "p@s s\\u0026w\\u003c\\u00F6\\/x",
        "p@s s&amp;w&lt;&#246;/x",
        "p%2540s+s%26w<%25C3%25B6/x",
        json.dumps(json.dumps("p@s s&w<ö/x"))[3:-3],
        quote(json.dumps("p@s s&w<ö/x")[1:-1]),
    ],
)
def test_spellings_may_be_mixed(form):
    assert Redactor(["p@s s&w<ö/x"])(f"a {form} 100%") == "a <secret> 100%"


@pytest.mark.parametrize("spell", [
    lambda text: text.replace("/", "\\/"), lambda text: text.replace('"', '\\"'), lambda text: text.replace("\\", "\\\\"),
    lambda text: quote(text, safe="!*'()~/:@"), lambda text: re.sub("%..", lambda match: match[0].lower(), quote(text, safe="")),
])  # fmt: skip
def test_a_secret_may_contain_another(spell):
    secret = 'hunter2/a"b\\c d!'
    assert Redactor(["hunter2", secret])(f"a {spell(secret)} b") == "a <secret> b"


def test_a_name_may_be_encoded_twice():
    known = Redactor(users=["Jörg Müller"])
    for form in (quote(quote("Jörg Müller")), json.dumps(json.dumps("Jörg Müller"))[3:-3]):
        assert known(f"a {form} b") == "a <user> b"


def test_secrets_of_many_lines():
    known = Redactor(["first line here\nsecond line here"])
    assert known("first line here\nx second line here\\n first line here\\nsecond line here").count("<secret>") >= 3
    assert known("first line here\nsecond line here") == "<secret>\n<secret>"


def test_placeholders_are_those_that_are_made():
    sources = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(sd3deploy.redact.__file__).parent.glob("*.py")]
    words = {
        one
        for source in sources
        for node in ast.walk(source)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for one in re.findall(r"^<[a-z ]+>$", node.value)
    }
    assert len(words) >= 6
    assert all(PLACEHOLDER.fullmatch(word) for word in words)
