"""The HTTP API as a script meets it, on a server without bitsandbytes: documented, behind the password, strict, never a 500.
Those that install run in the order in which they stand: an install that is cancelled, one that is not, then the encoders that need it.
"""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from demo import server
from sd3deploy import messages
from sd3deploy.guards import GUARDS
from tests.contract.conftest import AUTH, PROBE, ProbedHost, slow_disk, start
from tests.waiting import HANG, until

PREFIX = "/sdapi/v1/sd3"

# method, path → a body that does no work
ROUTES = {
    ("GET", "check"): None,
    ("GET", "events"): None,
    ("GET", "install"): None,
    ("GET", "memory"): None,
    ("GET", "memory/runs"): None,
    ("GET", "quality"): None,
    ("GET", "report"): None,
    ("GET", "status"): None,
    ("GET", "texts"): None,
    ("GET", "verify"): None,
    ("POST", "cancel"): {},
    ("POST", "check"): {},
    ("POST", "encoder"): {"encoder": "Host default"},
    ("POST", "install"): {"dry_run": True},
    ("POST", "memory/apply"): {},
    ("POST", "quality"): {},
    ("POST", "sources"): {},
    ("POST", "verify"): {},
    ("DELETE", "memory/corrections"): None,
}
WORKS = {("POST", "memory/apply"), ("POST", "quality"), ("POST", "verify")}  # these do something in any case


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def host(folder):
    data = server.data_folder(folder / "data", diffusers_offload_mode="none")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


@pytest.fixture(scope="module")
def schema(host):
    """Everything that the host's page of docs is made of."""
    return host.run("from modules import shared; result = shared.api.app.openapi()")


@pytest.fixture(scope="module")
def own_words(host):
    """Whether what is wrong with a request is said in our words; SD.Next before 2026-02 has pydantic 1, which takes its own, takes a number
    for a text, and has no word for null in the docs.
    """
    return host.run("import pydantic; result = hasattr(pydantic, 'model_validator')")


def stored(host, setting):
    """The value of a setting: SD.Next before 2026 has those of no extension among the options of its API."""
    return host.run(f"from modules import shared; result = shared.opts.data.get({setting!r})")


def ask(host, method, path, *, body=None, **words):
    """The answer, whatever its status. What is posted has a body."""
    body = {} if body is None and method == "POST" else body
    return host.client.request(method, f"{PREFIX}/{path}", **({"json": body} if body is not None else {}), **words)


def get(host, path, **question):
    return host.get(f"{PREFIX}/{path}", params=question)


def over(host, job):
    """The installation with that number when it has ended."""
    assert until(lambda: get(host, "install")["state"] != "running")
    found = get(host, "install")
    assert found["job"] == job
    return found


# Documented


def test_the_docs_know_every_route(schema):
    ours = {path.removeprefix(f"{PREFIX}/"): methods for path, methods in schema["paths"].items() if path.startswith(f"{PREFIX}/")}
    assert {(method.upper(), path) for path, methods in ours.items() for method in methods} == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_each_route_is_documented(schema, method, path):
    found = schema["paths"][f"{PREFIX}/{path}"][method.lower()]
    assert found["tags"] == ["SD3 Deploy"]
    assert found["operationId"] == f"sd3_{method.lower()}_{path.replace('/', '_')}"
    assert 10 < len(found["summary"]) < 70
    assert not found["summary"].endswith(".")
    assert len(found["description"]) > 40
    assert {"200", "401", "422", "429"} <= found["responses"].keys()
    assert found["responses"]["200"]["content"]["application/json"]["schema"].keys() & {"$ref", "anyOf", "items"}
    assert "Problem" in schema["components"]["schemas"]
    for code in found["responses"].keys() - {"200"}:
        assert found["responses"][code]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
    for parameter in found.get("parameters", []):
        assert parameter["description"], parameter["name"]
        assert parameter["in"] == "header" or parameter["schema"].get("examples"), parameter["name"]


@pytest.mark.parametrize("path", ["encoder", "install", "verify"])
def test_each_field_of_a_body_is_documented(schema, path):
    content = schema["paths"][f"{PREFIX}/{path}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    reference = content.get("$ref") or next(one["$ref"] for one in content["anyOf"] if "$ref" in one)
    model = schema["components"]["schemas"][reference.rpartition("/")[2]]
    assert model["additionalProperties"] is False
    for name, field in model["properties"].items():
        assert field["description"], name
        assert field["examples"], name


def test_each_part_of_an_answer_has_its_description(schema):
    waiting = {"Check", "Events", "InstallPlan", "Installation", "Memory", "Quality", "Report", "Status", "Verification"}
    assert waiting <= schema["components"]["schemas"].keys()
    for name in waiting - {"Report", "Memory"}:
        for field, found in schema["components"]["schemas"][name]["properties"].items():
            assert found.get("description") or found.get("items") or found.get("$ref"), f"{name}.{field}"


# Behind the password


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("auth", [None, ("probe", "wrong")])
def test_nothing_without_the_password(host, method, path, auth):
    answer = httpx.request(method, f"{host.url}{PREFIX}/{path}", auth=auth, json=ROUTES[method, path], trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["code"] == 401


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route not in WORKS])
def test_each_answers_with_the_password(host, method, path):
    answer = ask(host, method, path, body=ROUTES[method, path])
    assert answer.status_code == 200, answer.text


# Closed to pages of other sites

CHANGING = [route for route in ROUTES if route[0] != "GET"]
POSTED = [route for route in CHANGING if route[0] == "POST"]


def raw(host, method, path, headers=(), content=b"{}"):
    """As a browser sends it for a page, or a program, with these headers alone."""
    return httpx.request(method, f"{host.url}{PREFIX}/{path}", headers=dict(headers), content=content, auth=AUTH, trust_env=False)


def test_the_routes_that_change_something_are_those_that_are_not_read(schema):
    changing = {"cancel", "encoder", "install", "memory/apply", "memory/corrections", "quality", "verify"}
    told = {"check"}  # which shows the page's own message
    opened = {"sources"}  # which opens files and asks the network for whoever asks it
    assert {path for _, path in CHANGING} == changing | told | opened
    for method, path in CHANGING:
        assert "403" in schema["paths"][f"{PREFIX}/{path}"][method.lower()]["responses"]
    for method, path in POSTED:
        assert {"413", "415"} <= schema["paths"][f"{PREFIX}/{path}"][method.lower()]["responses"].keys()


@pytest.mark.parametrize(("method", "path"), POSTED)
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (None, b""),
        (None, b"{}"),
        ("text/plain", b"{}"),
        ("application/x-www-form-urlencoded", b"encoder=T5+FP4"),
        ("multipart/form-data; boundary=x", b"--x--"),
        ("text/plain; a=application/json", b"{}"),
        ("application/json", b""),
    ],
)
def test_what_changes_something_needs_a_body_of_json(host, method, path, kind, content):
    """Without one any page on the web can make a browser send it."""
    before = [get(host, path) for path in ("status", "verify", "install", "quality")]
    answer = raw(host, method, path, {"content-type": kind} if kind else {}, content)
    assert answer.status_code == 415, answer.text
    problem = answer.json()
    assert problem["body"]["id"] == "api.no-json"
    assert "Content-Type: application/json" in problem["body"]["remedy"]
    assert [get(host, path) for path in ("status", "verify", "install", "quality")] == before


@pytest.mark.parametrize(("method", "path"), POSTED)
@pytest.mark.parametrize("content", [b'{"a": NaN}', b'{"model": "\\ud800"}'], ids=["NaN", "half a surrogate pair"])
def test_a_body_that_no_answer_could_quote_is_refused(host, method, path, content):
    answer = raw(host, method, path, {"content-type": "application/json"}, content)
    assert answer.status_code == 422, answer.text
    assert answer.json()["body"]["id"] == "api.not-json"


@pytest.mark.parametrize(("method", "path"), POSTED)
def test_a_body_without_an_end_is_not_looked_at(host, method, path):
    answer = raw(host, method, path, {"content-type": "application/json"}, b'{"encoder": "' + b"a" * 100_000 + b'"}')
    assert answer.status_code == 413, answer.text[:300]
    assert answer.json()["body"]["id"] == "api.too-large"
    assert len(answer.content) < 1000


@pytest.mark.parametrize(("method", "path"), CHANGING)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "https://evil.example", "x-forwarded-host": "sd.example"},
    ],
)
def test_what_changes_something_is_closed_to_pages_of_other_sites(host, method, path, headers):
    answer = raw(host, method, path, {"content-type": "application/json", **headers})
    assert answer.status_code == 403, answer.text
    problem = answer.json()
    assert problem["body"]["id"] == "api.foreign"
    assert "--cors-origins" in problem["body"]["remedy"]
    assert get(host, "verify")["state"] == "none"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "{url}"},
        {"origin": "https://sd.example", "x-forwarded-host": "sd.example"},
        {"origin": "https://sd.example", "sec-fetch-site": "same-origin"},
        {"origin": "http://[::1]:7860", "host": "[::1]:7860"},
    ],
)
def test_our_own_page_and_programs_are_let_in(host, headers):
    sent = {name: value.format(url=host.url) for name, value in headers.items()}
    answer = raw(host, "POST", "cancel", {"content-type": "application/json; charset=utf-8", **sent})
    assert (answer.status_code, answer.json()["cancelled"]) == (200, False), answer.text
    assert raw(host, "DELETE", "memory/corrections", sent, b"").status_code == 200


def test_the_password_comes_first(host):
    answer = httpx.post(f"{host.url}{PREFIX}/cancel", headers={"origin": "https://evil.example"}, trust_env=False)
    assert answer.status_code == 401


def test_pages_that_the_host_was_told_to_trust_are_let_in(host):
    host.run("from modules import shared; shared.cmd_opts.cors_origins = 'https://ui.example,https://other.example'; result = None")
    try:
        trusted, other = (
            raw(host, "POST", "cancel", {"content-type": "application/json", "origin": origin, "sec-fetch-site": "cross-site"})
            for origin in ("https://ui.example", "https://evil.example")
        )
    finally:
        host.run("from modules import shared; shared.cmd_opts.cors_origins = None; result = None")
    assert (trusted.status_code, other.status_code) == (200, 403)


# Which paths of the machine are spoken of

FAR = {"x-forwarded-for": "192.0.2.7"}  # as a proxy tells of somebody else


@pytest.mark.parametrize("near", ["/etc/hostname", "/etc", "../../config.json", "{data}/config.json", "{data}/models/../config.json"])
def test_others_learn_nothing_about_paths(host, near):
    """A path that is there and one that is not are answered alike, but for themselves."""
    there = near.format(data=host.data)
    answers = []
    for path in (there, f"{there}-that-is-not-there"):
        for method, where, words in (
            ("POST", "verify", {"body": {"model": path}}),
            ("GET", "memory", {"params": {"model": path}}),
            ("GET", "check", {"params": {"model": path}}),
        ):
            answer = ask(host, method, where, headers=FAR, **words)
            assert answer.status_code == 422, answer.text
            answers.append((where, answer.json()["body"]["id"]))
    assert answers[:3] == answers[3:] == [
        ("verify", "verify.no-model"),
        ("memory", "setting.model-unknown"),
        ("check", "setting.model-unknown"),
    ]  # fmt: skip
    assert get(host, "verify")["state"] == "none"


@pytest.mark.parametrize("name", ["{model}", "tiny-sd3", "{data}/models/Diffusers/tiny-sd3"])
def test_others_may_name_models_of_the_host(host, name):
    answer = ask(host, "GET", "memory", params={"model": name.format(model=server.MODEL, data=host.data)}, headers=FAR)
    assert answer.status_code == 200, answer.text


def test_this_machine_may_name_any_path(host, tmp_path):
    from sd3deploy import tiny_sd3

    assert ask(host, "GET", "memory", params={"model": str(tiny_sd3.ensure())}).status_code == 200
    assert ask(host, "GET", "memory", params={"model": str(tmp_path)}).json()["body"]["id"] == "memory.no-model"


def test_sources_are_told_before_they_are_chosen(host, tmp_path):
    from safetensors.torch import load_file

    from sd3deploy import tiny_sd3
    from tests import gguf_files

    folder = tiny_sd3.ensure() / "text_encoder_3"
    state = {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}
    state.pop("encoder.embed_tokens.weight", None)
    file = gguf_files.write(tmp_path / "t5.gguf", state, "Q8_0")
    body = {"encoder": "T5 FP8", "weights": "Local file", "file": str(file)}
    rows = {row["kind"]: row for row in ask(host, "POST", "sources", body=body).json()}
    assert [row["chosen"] for row in rows.values()] == [False, False, False, True, False]
    assert rows["Automatic"]["complete"]
    found = rows["Local file"]
    assert ", Q8_0, " in found["text"]
    assert (found["complete"], found["fetched"]) == (True, 0)
    assert found["read"] > 0
    assert found["kept"] > 0
    assert not stored(host, "sd3_weights_file")
    there, not_there = (
        {row["kind"]: row for row in ask(host, "POST", "sources", body={**body, "file": str(one)}, headers=FAR).json()}["Local file"]
        for one in (file, tmp_path / "nothing")
    )
    assert there == not_there
    assert there["id"] == "source.file-elsewhere"


# Strict about questions


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_an_unknown_parameter_is_named(host, own_words, method, path):
    answer = ask(host, method, path, body=ROUTES[method, path], params={"widht": "1"})
    assert answer.status_code == 422
    found = answer.json()["detail"][0]
    assert found["loc"] == ["query", "widht"]
    if not own_words:
        return
    assert found["type"] == "unknown_field"
    assert found["msg"].startswith("“widht” is not known here")
    if (method, path) in (("GET", "check"), ("GET", "memory")):
        assert "“width” comes nearest" in found["msg"]


@pytest.mark.parametrize(
    ("path", "body", "place", "nearest"),
    [
        ("encoder", {"encoder": "Host default", "encodr": 1}, "encodr", "encoder"),
        ("install", {"dry_run": True, "dryrun": True}, "dryrun", "dry_run"),
        ("verify", {"modle": ""}, "modle", "model"),
    ],
)
def test_an_unknown_field_is_named(host, own_words, path, body, place, nearest):
    answer = ask(host, "POST", path, body=body)
    assert answer.status_code == 422
    found = answer.json()["detail"][0]
    assert found["loc"] == ["body", place]
    assert f"“{nearest}” comes nearest" in found["msg"] or not own_words


@pytest.mark.parametrize(
    ("method", "path", "question", "body", "place"),
    [
        ("GET", "memory", {"width": "wide"}, None, ["query", "width"]),
        ("GET", "memory", {"width": 10**9}, None, ["query", "width"]),
        ("GET", "memory", {"tiling": "perhaps"}, None, ["query", "tiling"]),
        ("GET", "events", {"since": "yesterday"}, None, ["query", "since"]),
        ("GET", "report", {"format": "pdf"}, None, ["query", "format"]),
        ("GET", "quality", {"format": "pdf"}, None, ["query", "format"]),
        ("POST", "quality", {}, {"encoder": "q4"}, ["body", "encoder"]),
        ("POST", "encoder", {}, {}, ["body", "encoder"]),
        ("POST", "encoder", {}, {"encoder": 5}, ["body", "encoder"]),
        ("POST", "encoder", {}, ["T5 FP4"], ["body"]),
        ("POST", "install", {}, {"dry_run": "perhaps"}, ["body", "dry_run"]),
        ("POST", "install", {}, {"dry_run": True, "groups": "bitsandbytes"}, ["body", "groups"]),
        ("POST", "verify", {}, {"model": 5}, ["body", "model"]),
    ],
)
def test_a_wrong_type_is_answered_with_its_place(host, own_words, method, path, question, body, place):
    answer = ask(host, method, path, params=question, body=body)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    if not own_words and isinstance(problem["detail"], str):  # the number as a text, which means nothing either
        assert problem["body"]["id"] in ("setting.encoder-unknown", "verify.no-model")
    else:
        assert [one["loc"] for one in problem["detail"]] == [place]


def test_a_body_that_is_no_json(host):
    answer = host.client.post(f"{PREFIX}/encoder", content=b"{encoder: T5", headers={"content-type": "application/json"})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "question", "body", "id", "helps"),
    [
        ("GET", "check", {"model": "sd4"}, None, "setting.model-unknown", "sd3-medium"),
        ("GET", "check", {"encoder": "t6"}, None, "setting.encoder-unknown", "comes nearest"),
        ("GET", "memory", {"offload": "sideways"}, None, "memory.offload-unknown", "balanced"),
        ("POST", "encoder", {}, {"encoder": "T5 FP44"}, "setting.encoder-unknown", "“T5 FP4” comes nearest"),
        ("POST", "encoder", {}, {"encoder": "uint4"}, "setting.encoder-gone", "T5 Q4"),
        ("GET", "memory", {"encoder": "T5 NF4 + INT8"}, None, "setting.encoder-gone", "T5 Q5"),
        ("POST", "install", {}, {"groups": ["torch"]}, "install.unknown-group", "bitsandbytes"),
        ("POST", "install", {}, {"groups": ["bitsandbytes; rm"], "dry_run": True}, "install.unknown-group", "bitsandbytes"),
        ("POST", "verify", {}, {"model": "/nowhere"}, "verify.no-model", "model_index.json"),
    ],
)
def test_a_question_that_means_nothing_is_answered_with_the_remedy(host, method, path, question, body, id, helps):
    answer = ask(host, method, path, params=question, body=body)
    assert answer.status_code == 422
    problem = answer.json()
    assert (problem["code"], problem["body"]["id"]) == (422, id)
    assert helps in problem["body"]["remedy"]
    assert problem["detail"] == f"{problem['body']['message']} {problem['body']['remedy']}"


def test_the_language_is_that_of_the_request(host, own_words):
    known = [code for code in messages.languages() if code != "en"]
    assert known
    english = get(host, "status")["line"]
    for code in known:
        spoken = {"accept-language": f"{code}-XX,{code};q=0.9,en;q=0.1"}
        refused = ask(host, "POST", "encoder", body={"encoder": "T6"}, headers=spoken).json()
        unknown = ask(host, "GET", "check", params={"widht": 1}, headers=spoken).json()["detail"][0]["msg"]
        with messages.speaking(code):
            nearest = {"value": "'T6'", "nearest": "Host default"}
            assert refused["body"]["message"] == messages.text("setting.encoder-unknown", **nearest)
            assert refused["body"]["remedy"] == messages.remedy("setting.encoder-unknown", **nearest)
            assert unknown.startswith(messages.text("api.unknown-field", name="widht", nearest="width", known="")) or not own_words
        hint = ask(host, "GET", "check", params={"width": "many"}, headers=spoken).json()["hints"][0]["text"]
        with messages.speaking(code):
            assert hint == messages.text("hint.size.refuse", asked="many×None")
    assert get(host, "status")["line"] == english  # the one request has changed nothing for the others


# Quick, and complete


def test_the_check_answers_all_that_stands_beside_the_controls(host):
    answer = get(host, "check", width="1000", height="1000", sampler="DDIM", prompt="a cat", batch="2")
    assert (answer["code"], answer["width"], answer["height"], answer["sampler"]) == (1, 1008, 1008, "Default")
    assert [(one["kind"], one["severity"]) for one in answer["hints"]] == [("size", "change"), ("sampler", "change"), ("memory", "ok")]
    assert answer["hints"][0]["text"] == "1000×1000 → 1008×1008"
    assert answer["memory"]["answer"] == "fits"
    assert answer["memory"]["need"] < answer["memory"]["usable"]
    one = get(host, "check", width="1000", height="1000", batch="1")["memory"]["need"]
    assert one < answer["memory"]["need"]


def test_the_check_says_what_memory_says(host):
    question = {"width": "1024", "height": "1024", "model": "sd3.5-large", "encoder": "fp4"}
    checked = get(host, "check", **question)["memory"]
    assert checked["need"] == get(host, "memory", **question)["verdict"]["need"]


def test_a_refused_job_needs_no_memory(host):
    answer = get(host, "check", width="many")
    assert (answer["code"], answer["memory"]) == (2, None)
    assert [one["severity"] for one in answer["hints"]] == ["refuse"]


def test_memory_that_is_not_looked_at_is_not_spoken_of(host):
    host.set(sd3_memory="off")
    answer = get(host, "check", width="1024", height="1024")
    assert (answer["hints"], answer["memory"]) == ([], None)
    host.set(sd3_memory="warn")


NUMBERS = ["1e308", "-1e308", "1e400", "9" * 400, "9" * 5000, "nan", "inf", "-inf", "1e17", "-0", "1e-320", "0x10", "1_000", "٣", "\0", ""]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("field", ["width", "height", "batch", "steps", "guidance", "hires"])
def test_any_number_is_answered_by_check(host, field, value):
    question = {"width": "1024", "height": "1024", "hires": "2", field: value}
    assert ask(host, "GET", "check", params=question).status_code == 200


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("field", ["width", "height", "batch", "guidance"])
def test_any_number_is_answered_or_named_by_memory(host, field, value):
    assert ask(host, "GET", "memory", params={field: value}).status_code in (200, 422)


def test_numbers_that_are_large_together(host):
    most = dict.fromkeys(("width", "height", "batch", "steps", "guidance", "hires"), "9007199254740992")
    assert ask(host, "GET", "check", params=most).status_code == 200
    assert ask(host, "GET", "check", params={"hires": "1e308", "width": "1024"}).status_code == 200


@pytest.mark.parametrize("batch", ["", "none", "-5", "1e300", "nan"])
def test_a_batch_may_be_anything(host, batch):
    assert get(host, "check", width="512", height="512", batch=batch)["code"] == 0


def test_events_say_what_is_under_way_and_what_can_be_done(host):
    now = get(host, "events")
    assert [now[name] for name in ("verifying", "installing", "measuring", "loading", "busy", "progress")] == [False] * 4 + [None] * 2
    assert host.set(sd3_text_encoder="T6") == {"sd3_text_encoder": False}
    event = get(host, "events")["events"][-1]
    assert (event["id"], event["severity"]) == ("setting.encoder-unknown", "error")
    assert event["action"] is None or event["action"].keys() >= {"id", "label"}


def test_what_only_the_user_can_allow_offers_no_installation_that_would_fail_again(host):
    host.set(sd3_auto_install=False)
    ask(host, "POST", "encoder", body={"encoder": "T5 FP4"})
    event = get(host, "events")["events"][-1]
    assert (event["id"], event["action"]) == ("deps.not_allowed", None)
    host.set(sd3_auto_install=True)


def test_the_words_of_the_page(host):
    found = get(host, "texts")
    assert found["language"] == "en"
    assert found["texts"]["page.close"] == messages.catalogue("en")["page.close"]


def test_the_report_in_its_three_shapes(host):
    assert get(host, "report")["host"]
    for shape in ("text", "markdown"):
        answer = ask(host, "GET", "report", params={"format": shape})
        assert answer.headers["content-type"].startswith("text/plain")
        assert "SD3 Deploy" in answer.text


# Limits, and several at once


def test_three_hundred_questions_in_a_minute_are_answered_and_then_the_host_says_stop(host):
    """The host's own limit: so many in a minute for one address and one path (its server_rate_limit)."""
    if "server_rate_limit" not in host.run("from modules import shared; result = list(shared.opts.data_labels)"):
        pytest.skip("this SD.Next, before 2026-03, answers as many as there are")
    host.set(server_rate_limit=300)
    try:
        codes = [ask(host, "GET", "status").status_code for _ in range(300)]
        assert codes == [200] * 300
        late = [ask(host, "GET", "status") for _ in range(5)]
        assert 429 in {one.status_code for one in late}
        assert {one.status_code for one in late} <= {200, 429}  # its window slides
        limited = next(one for one in late if one.status_code == 429).json()
        assert "rate limit" in limited["detail"]
        assert limited["code"] == 429
        assert ask(host, "GET", "events").status_code == 200
    finally:
        host.set(server_rate_limit=0)


def test_the_polled_paths_stay_out_of_the_hosts_log(host):
    quiet = host.run("""
        try:
            from modules.api.validate import log_cost
            result = [path for path, cost in log_cost.items() if cost == -1]
        except ImportError:  # before 2026-03
            from modules.api.middleware import ignore_endpoints as result
    """)
    assert {f"{PREFIX}/{path}" for path in ("check", "events", "install", "memory", "status", "verify")} <= set(quiet)


# Installing


@pytest.mark.parametrize(("flags", "allowed"), [(("--listen",), False), (("--listen", "--insecure"), True)])
def test_a_server_that_others_reach_installs_nothing_unless_it_was_told_to(folder, flags, allowed):
    server.data_folder(folder / "open")
    public = start(folder, "open", *flags, auth=AUTH)
    try:
        plan = public.post(f"{PREFIX}/install", {"dry_run": True, "groups": ["bitsandbytes"]})
        assert [one["name"] for one in plan["changes"]] == ["bitsandbytes"]
        assert (plan["refusal"] is None) == allowed
        if not allowed:
            answer = public.client.post(f"{PREFIX}/install", json={"groups": ["bitsandbytes"]})
            assert answer.status_code == 403
            assert "--insecure" in answer.json()["detail"]
            assert public.get(f"{PREFIX}/install")["state"] == "none"
            no_way_in_installs(public)
            assert public.get(f"{PREFIX}/status")["packages"]["bitsandbytes"] is None
    finally:
        public.stop()


def no_way_in_installs(public):
    """Settings, POST encoder, override_settings, the arguments of the script: each is refused with the
    remedy, the setting is as before, and pictures are made with the encoder that is there.
    """

    def refused():
        events = public.get(f"{PREFIX}/events?since={refused.seen}")["events"]
        refused.seen = events[-1]["seq"] if events else refused.seen
        return [one["id"] for one in events if one["id"] == "deps.forbidden" and "--insecure" in one["remedy"]] == ["deps.forbidden"]

    refused.seen = 0
    assert public.txt2img()["images"]  # loads the model
    assert public.set(sd3_text_encoder="T5 FP4") == {"sd3_text_encoder": False}
    assert refused()
    answer = public.client.post(f"{PREFIX}/encoder", json={"encoder": "T5 FP4"})
    assert (answer.status_code, answer.json()["body"]["id"]) == (409, "deps.forbidden")
    assert refused()
    assert public.get(f"{PREFIX}/status")["wanted"] == "Host default"
    for asked in ({"override_settings": {"sd3_text_encoder": "T5 FP4"}}, {"alwayson_scripts": {"SD3 Deploy": {"args": ["T5 INT8"]}}}):
        assert public.txt2img(**asked)["images"]
        assert refused()
        assert public.get(f"{PREFIX}/status")["encoder"] == "Host default"


def test_a_server_that_installs_nothing_says_how_to_let_it(host):
    host.set(sd3_auto_install=False)
    answer = ask(host, "POST", "install", body={"groups": ["bitsandbytes"]})
    assert answer.status_code == 403
    assert answer.json()["body"]["id"] == "install.switched-off"
    assert "Settings → SD3 Deploy" in answer.json()["detail"]
    host.set(sd3_auto_install=True)


def test_a_dry_run_says_everything_and_does_nothing(host):
    plan = ask(host, "POST", "install", body={"dry_run": True, "groups": ["bitsandbytes"]}).json()
    assert (plan["empty"], plan["groups"], plan["refusal"], plan["stale"]) == (False, ["bitsandbytes"], None, [])
    change = plan["changes"][0]
    assert (change["name"], change["before"], change["wanted"]) == ("bitsandbytes", None, ">=0.48")
    assert plan["download"] >= change["download"] > 10_000_000
    assert plan["unpacked"] > plan["download"]
    assert "bitsandbytes>=0.48" in plan["command"]
    assert "Install bitsandbytes" in plan["text"]
    assert get(host, "install") == {
        "job": 0, "state": "none", "fraction": None, "text": "", "changed": {}, "error": None, "restart": None,
    }  # fmt: skip
    assert get(host, "status")["packages"]["bitsandbytes"] is None


def test_what_any_encoder_needs_that_runs_here_is_the_default(host):
    core = ask(host, "POST", "install", body={"dry_run": True, "repair": True, "groups": []}).json()
    assert (core["groups"], core["empty"], core["command"]) == ([], True, [])
    plan = ask(host, "POST", "install", body={"dry_run": True, "repair": True}).json()
    assert (plan["groups"], plan["empty"]) == (["bitsandbytes"], False)


def test_an_installation_is_ended_and_leaves_no_trace(host):
    before = packages(host)
    job = ask(host, "POST", "install", body={"groups": ["bitsandbytes"]}).json()["job"]
    assert get(host, "events")["installing"] is True
    assert ask(host, "POST", "install", body={"groups": ["bitsandbytes"]}).json()["job"] == job  # one at a time
    until(lambda: "Downloading" in get(host, "install")["text"] or get(host, "install")["state"] != "running")
    assert ask(host, "POST", "cancel").json() == {"cancelled": True, "jobs": ["install"]}
    found = over(host, job)
    assert (found["state"], found["changed"], found["error"]) == ("cancelled", {}, None)
    assert packages(host) == before
    assert get(host, "events")["installing"] is False
    assert get(host, "events")["events"][-1]["id"] == "deps.cancelled"
    assert ask(host, "POST", "cancel").json() == {"cancelled": False, "jobs": []}


def test_a_change_of_the_encoder_is_cancelled_while_its_packages_are_installed(host):
    before, encoder = packages(host), get(host, "status")["encoder"]
    with ThreadPoolExecutor() as pool:
        change = pool.submit(ask, host, "POST", "encoder", body={"encoder": "T5 FP4"})
        assert until(lambda: "bitsandbytes" in (get(host, "status")["busy"] or ""))
        assert get(host, "events")["loading"] is True
        assert ask(host, "POST", "cancel").json() == {"cancelled": True, "jobs": ["encoder"]}
        answer = change.result(HANG)
    assert answer.status_code == 409
    assert answer.json()["body"]["id"] in ("deps.cancelled", "encoder.cancelled")  # as far as it had come
    assert packages(host) == before
    assert (get(host, "status")["encoder"], get(host, "status")["busy"]) == (encoder, None)
    assert get(host, "events")["events"][-1]["severity"] == "info"


def packages(host) -> list[str]:
    """Everything in the host's site-packages, and what a repair would have left behind."""
    return host.run(
        """
        import os, sys, sysconfig
        rest = os.path.join(sys.prefix, ".sd3deploy", "quarantine")
        result = sorted(os.listdir(sysconfig.get_path("purelib"))) + [str(os.path.exists(rest))]
        """
    )


def test_a_password_of_the_package_index_is_not_shown(host):
    host.run("import os; os.environ['PIP_EXTRA_ARGS'] = '--extra-index-url https://me:hunter2@index.invalid/simple'; result = None")
    answer = ask(host, "POST", "install", body={"dry_run": True, "groups": ["bitsandbytes"]})
    host.run("import os; del os.environ['PIP_EXTRA_ARGS']; result = None")
    assert "index.invalid/simple" in answer.text
    assert "hunter2" not in answer.text


def test_an_installation_that_fails_says_why_and_changes_nothing(host):
    """An index where nothing answers."""
    before = packages(host)
    host.run("import os; os.environ['PIP_EXTRA_ARGS'] = '--index-url http://127.0.0.1:9/simple'; result = None")
    job = ask(host, "POST", "install", body={"groups": ["bitsandbytes"]}).json()["job"]
    found = over(host, job)
    host.run("import os; del os.environ['PIP_EXTRA_ARGS']; result = None")
    assert (found["state"], found["changed"], found["error"]["id"]) == ("failed", {}, "deps.no_network")
    assert "proxy" in found["error"]["remedy"]
    assert packages(host) == before
    event = get(host, "events")["events"][-1]
    assert (event["id"], event["message"], event["action"]["id"]) == ("deps.no_network", found["error"]["message"], "install")
    assert get(host, "status")["last_error"]["id"] == "deps.no_network"


def test_what_is_missing_is_installed_and_can_be_used_at_once(host):
    """What the chosen encoder needs, which is stored, but could not be loaded so far: it is loaded as soon as its packages are there."""
    pid = get(host, "status")["pid"]
    host.run("from modules import shared; shared.opts.data['sd3_text_encoder'] = 'T5 NF4'; result = None")
    job = ask(host, "POST", "install", body={"repair": True}).json()["job"]
    said = set()
    assert until(lambda: said.add(get(host, "install")["text"]) or get(host, "install")["state"] != "running")
    assert any("ownloading" in line or "cached" in line for line in said), said
    found = over(host, job)
    assert (found["state"], found["fraction"], found["error"], found["restart"]) == ("done", 1.0, None, None)
    assert found["changed"].keys() == {"bitsandbytes"}
    now = get(host, "status")
    assert (now["packages"]["bitsandbytes"], now["pid"]) == (found["changed"]["bitsandbytes"], pid)
    assert until(lambda: get(host, "status")["encoder"] == "T5 NF4")
    assert until(lambda: get(host, "status")["last_error"] is None)  # what could not be loaded before

    def told():
        ids = [event["id"] for event in get(host, "events")["events"] if event["id"] != "cache.written"]  # that is whenever it is
        return ids[ids.index("packages.installed") :]

    assert until(lambda: told()[-1] == "encoder.ready-smaller")  # told a moment after it is in the pipeline
    assert told() == ["packages.installed", "encoder.loading", "encoder.ready-smaller"]
    assert host.run("from transformers.utils import is_bitsandbytes_available; result = is_bitsandbytes_available()") is True


def test_where_nothing_is_missing_nothing_is_done(host):
    assert ask(host, "POST", "install", body={"dry_run": True, "groups": ["bitsandbytes"]}).json()["empty"] is True
    before = get(host, "events")["events"][-1]["seq"]
    job = ask(host, "POST", "install", body={"groups": ["bitsandbytes"]}).json()["job"]
    found = over(host, job)
    assert (found["state"], found["changed"]) == ("done", {})
    assert get(host, "events", since=before)["events"] == []


def test_a_broken_numpy_is_planned_to_be_put_back(host):
    """Looked at only: NumPy is loaded in this process, and its mending is proven in tests/test_repair.py."""
    damage = """
        import sysconfig, pathlib
        site = pathlib.Path(sysconfig.get_path("purelib"))
        result = str(site / "~umpy"); pathlib.Path(result).mkdir()
    """
    left = host.run(damage)
    try:
        plan = ask(host, "POST", "install", body={"dry_run": True, "repair": True}).json()
        assert plan["sweep"] == ["numpy"]
        assert ask(host, "POST", "install", body={"dry_run": True}).json()["empty"] is True
        job = ask(host, "POST", "install", body={"repair": True}).json()["job"]
        assert over(host, job)["state"] == "done"
        assert host.run(f"import os; result = os.path.exists({left!r})") is False
    finally:
        host.run(f"import shutil; shutil.rmtree({left!r}, ignore_errors=True)")


# The encoder


@pytest.mark.parametrize(("asked", "name"), [("T5 FP4", "T5 FP4"), ("none (clip ONLY)", "None (CLIP only)"), ("nf4", "T5 NF4")])
def test_an_encoder_is_chosen_as_in_the_settings(host, asked, name):
    answer = ask(host, "POST", "encoder", body={"encoder": asked})
    assert answer.status_code == 200, answer.text
    now = answer.json()
    assert (now["encoder"], now["wanted"], now["busy"], now["last_error"]) == (name, name, None, None)
    assert now == {**get(host, "status")}
    assert stored(host, "sd3_text_encoder") == name
    assert until(lambda: f'"{name}"' in (host.data / "config.json").read_text("utf-8"))
    assert f"T5: {name}" in host.txt2img()["info"]["infotexts"][0]


def test_the_same_encoder_again_is_no_failure(host):
    ask(host, "POST", "encoder", body={"encoder": "T5 NF4"})
    before = host.run("from modules import modeldata; result = id(modeldata.model_data.sd_model.text_encoder_3)")
    assert ask(host, "POST", "encoder", body={"encoder": "T5 NF4"}).status_code == 200
    assert host.run("from modules import modeldata; result = id(modeldata.model_data.sd_model.text_encoder_3)") == before


def test_an_encoder_that_fails_leaves_everything_as_it_was(host):
    host.set(sd3_weights="Local file", sd3_weights_file="/nowhere/t5.safetensors")
    answer = ask(host, "POST", "encoder", body={"encoder": "T5 FP4"})
    problem = answer.json()
    assert answer.status_code == 409
    assert "/nowhere/t5.safetensors" in problem["body"]["message"]
    assert problem["body"]["remedy"]
    assert problem["detail"] == f"{problem['body']['message']} {problem['body']['remedy']}"
    now = get(host, "status")
    assert (now["encoder"], now["wanted"]) == ("T5 NF4", "T5 NF4")
    assert now["last_error"]["message"].startswith(f"{problem['body']['message']} T5 NF4 is still in use. The new source")
    host.set(sd3_weights="Automatic", sd3_weights_file="")
    names = "import threading; result = [thread.name for thread in threading.enumerate()]"
    assert until(lambda: "sd3-later" not in host.run(names))  # or it and what comes next would be one after the other


def test_an_encoder_that_is_refused_for_its_memory(host):
    host.run(
        """
        from sd3deploy.webui.jobs import forecast
        real = forecast.free_memory
        import dataclasses
        forecast.free_memory = lambda host: dataclasses.replace(real(host), ram_usable=1_000_000)
        result = None
        sd3probe.real_free_memory = real
        """
    )
    try:
        host.set(sd3_memory="block")
        answer = ask(host, "POST", "encoder", body={"encoder": "T5 BF16"})
        assert answer.status_code == 409
        assert answer.json()["body"]["id"] == "memory.encoder"
        assert get(host, "status")["encoder"] == "T5 NF4"
    finally:
        host.run("from sd3deploy.webui.jobs import forecast; forecast.free_memory = sd3probe.real_free_memory")
        host.set(sd3_memory="warn")


def test_what_nobody_has_foreseen_is_a_failure_with_a_remedy_too(host):
    """Something in the host breaks in the middle of it."""
    host.run("from modules import sd_models; sd3probe.real_clear = sd_models.clear_caches; sd_models.clear_caches = None")
    try:
        answer = ask(host, "POST", "encoder", body={"encoder": "T5 BF16"})
    finally:
        host.run("from modules import sd_models; sd_models.clear_caches = sd3probe.real_clear")
    assert answer.status_code == 409, answer.text
    assert answer.json()["body"]["remedy"]
    now = get(host, "status")
    assert (now["encoder"], now["wanted"]) == ("T5 NF4", "T5 NF4")
    assert len(host.txt2img()["images"]) == 1


def reading(host):
    """How far the encoder is that is being read, as soon as it is."""
    assert until(lambda: (get(host, "status")["progress"] or {"done": 0})["done"])
    return get(host, "status")["progress"]


def test_a_load_says_how_far_it_is_and_can_be_cancelled(host):
    before = get(host, "events")["events"][-1]["seq"]
    with slow_disk(host), ThreadPoolExecutor() as pool:
        change = pool.submit(ask, host, "POST", "encoder", body={"encoder": "T5 FP8"})
        found = reading(host)
        assert 0 < found["done"] < found["total"]
        assert 0 < found["fraction"] < 1
        assert " of " in found["text"]
        assert get(host, "status")["busy"] == "Loading T5 FP8…"
        now = get(host, "events")
        assert (now["loading"], now["active"]) == (True, True)
        assert now["progress"]["total"] == found["total"]
        shown = host.get("/sdapi/v1/progress")
        assert 0 < shown["progress"] < 1
        assert shown["textinfo"].startswith("T5 FP8: ")
        assert ask(host, "POST", "cancel").json() == {"cancelled": True, "jobs": ["encoder"]}
        answer = change.result(HANG)
    assert answer.status_code == 409
    assert answer.json()["body"]["id"] == "encoder.cancelled"
    now = get(host, "status")
    assert (now["encoder"], now["wanted"], now["busy"], now["progress"]) == ("T5 NF4", "T5 NF4", None, None)
    assert now["last_error"] is None or now["last_error"]["id"] != "encoder.cancelled"
    told = get(host, "events", since=before)["events"]
    assert [(event["id"], event["severity"]) for event in told][-1] == ("encoder.cancelled", "info")
    assert "T5 NF4 is still in use" in told[-1]["message"]
    assert stored(host, "sd3_text_encoder") == "T5 NF4"
    assert get(host, "events")["loading"] is False
    assert "T5: T5 NF4" in host.txt2img()["info"]["infotexts"][0]


def test_the_hosts_own_stop_ends_a_load_too(host):
    with slow_disk(host), ThreadPoolExecutor() as pool:
        change = pool.submit(host.set, sd3_text_encoder="T5 FP8")
        reading(host)
        host.post("/sdapi/v1/interrupt")
        assert change.result(HANG) == {"sd3_text_encoder": False}
    assert (get(host, "status")["encoder"], get(host, "status")["wanted"]) == ("T5 NF4", "T5 NF4")
    assert len(host.txt2img()["images"]) == 1


def test_a_picture_whose_encoder_is_cancelled_is_not_made_with_another_one(host):
    with slow_disk(host), ThreadPoolExecutor() as pool:
        job = pool.submit(host.txt2img, override_settings={"sd3_text_encoder": "T5 FP8"})
        reading(host)
        assert ask(host, "POST", "cancel").json()["jobs"] == ["encoder"]
        assert job.result(HANG)["images"] == []
    assert "T5: T5 NF4" in host.txt2img()["info"]["infotexts"][0]


def test_a_model_whose_encoder_is_cancelled_while_it_is_loaded_has_clip_alone_and_says_so(host):
    host.post("/sdapi/v1/unload-checkpoint", {})
    assert host.set(sd3_text_encoder="T5 FP8") == {"sd3_text_encoder": True}
    before = get(host, "events")["events"][-1]["seq"]
    with slow_disk(host), ThreadPoolExecutor() as pool:
        loaded = pool.submit(host.post, "/sdapi/v1/reload-checkpoint", {})
        reading(host)
        host.post("/sdapi/v1/interrupt")
        loaded.result(HANG)
    told = [event["id"] for event in get(host, "events", since=before)["events"]]
    assert told[-2:] == ["encoder.cancelled", "encoder.without-t5"]
    now = get(host, "status")
    assert (now["model"], now["encoder"], now["wanted"]) == (server.MODEL, "None (CLIP only)", "T5 FP8")
    assert "T5: None (CLIP only)" in host.txt2img()["info"]["infotexts"][0]
    assert ask(host, "POST", "encoder", body={"encoder": "T5 NF4"}).json()["encoder"] == "T5 NF4"


def test_two_scripts_at_once(host):
    """One changes encoders, one makes pictures, others ask: nothing fails, and the setting and the model agree in the end."""

    def encoders(name):
        return [ask(host, "POST", "encoder", body={"encoder": one}) for one in (name, "T5 BF16", name)]

    def questions(path):
        sized = path in ("check", "memory")
        return [ask(host, "GET", path, params={"width": str(side)} if sized else {}) for side in range(64, 1000, 60)]

    with ThreadPoolExecutor(8) as pool:
        changes = [pool.submit(encoders, name) for name in ("T5 FP4", "None (CLIP only)", "T5 NF4")]
        asked = [pool.submit(questions, path) for path in ("check", "memory", "events", "status")]
        pictures = [pool.submit(host.txt2img, steps=1) for _ in range(2)]
        answers = itertools.chain.from_iterable(one.result() for one in (*changes, *asked))
        assert [answer.text for answer in answers if answer.status_code != 200] == []
        assert all(len(one.result()["images"]) == 1 for one in pictures)
    now = get(host, "status")
    assert now["encoder"] == now["wanted"] == stored(host, "sd3_text_encoder")
    assert now["last_error"] is None
    assert "Traceback" not in host.run("result = 'Traceback' if sd3probe.__dict__.get('failed') else ''")


# Whatever comes: schemathesis makes questions out of the schema, right ones and wrong ones, and holds the answers against it


def _free(method, path, case):
    """The question without what would begin real work; None where nothing of it is left.

    An installation is only ever planned, the checks get a model that is not there. Of encoders only names that mean nothing are made up.
    """
    if path == "install" and method == "POST":
        if not isinstance(case.body, dict):
            return None if type(case.body).__name__ == "NotSet" or case.body is None else case
        case.body = {**case.body, "dry_run": True}
    if path == "verify" and method == "POST":
        if not isinstance(case.body, dict):
            return None if type(case.body).__name__ == "NotSet" or case.body is None else case
        case.body = {**case.body, "model": "/nowhere"}
    return case


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_no_question_is_too_strange(host, schema, own_words, method, path, kind):
    import requests
    import schemathesis
    from hypothesis import HealthCheck, assume, given, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, *[response_schema_conformance] * own_words]
    own = schemathesis.openapi.from_dict(schema).include(path=f"{PREFIX}/{path}")
    operation = own[f"{PREFIX}/{path}"][method]
    mode = GenerationMode.POSITIVE if kind == "positive" else GenerationMode.NEGATIVE
    session = requests.Session()
    session.trust_env = False
    few = (method, path) in WORKS and path != "verify"  # takes a moment each time, and there is nothing to vary

    @settings(max_examples=2 if few else 25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(mode))
    def answers(case):
        free = _free(method, path, case)
        assume(free is not None)
        response = free.call(base_url=host.url, session=session, auth=AUTH, timeout=60)
        free.validate_response(response, checks=checks)

    answers()
    ask(host, "POST", "cancel")  # a measurement would take minutes


def test_after_all_of_this_the_server_makes_pictures(host):
    assert not any("API error" in line and "'code': 500" in line for line in host.log().splitlines())
    assert len(host.txt2img()["images"]) == 1
    assert set(GUARDS) == {"attention", "size", "sampling", "prompt"}
