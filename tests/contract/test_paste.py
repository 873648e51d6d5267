"""The button Restore: the text of a picture back into the fields, those of scripts too."""

from __future__ import annotations

import pytest

TEXT = "a cat\nNegative prompt: a dog\nSteps: 7, Size: 384x128, Sampler: Default, Seed: 5, CFG scale: 4.5, App: SD.Next"


@pytest.fixture
def restore(host):
    """Press the button of a tab with `text` in its prompt. Returns elem_id → the update that its component gets."""
    host.login()
    config = host.get("/config")
    parts = {part["id"]: part["props"] for part in config["components"]}
    kinds = {part["id"]: part["type"] for part in config["components"]}

    def press(text, tab="txt2img"):
        button = next(id for id, props in parts.items() if props.get("elem_id") == f"{tab}_paste")
        targets = [button], [button, "click"]
        index, event = next((index, one) for index, one in enumerate(config["dependencies"]) if one["backend_fn"]
                            and any(target in one["targets"] for target in (button, *targets))
                            and [kinds[id] for id in one["inputs"]] == ["textbox"])  # before 2026 it takes a picture, too
        answer = host.post("/run/predict", {"data": [text], "fn_index": index, "session_hash": "paste"})
        given = {}
        for id, update in zip(event["outputs"], answer["data"], strict=True):
            if isinstance(update, dict) and "value" in update:
                given[parts[id].get("elem_id")] = update["value"]
        return given

    return press


@pytest.mark.parametrize(("tab", "size"), [("txt2img", "txt2img"), ("control", "control_before_resize")])
def test_the_fields_of_the_host(restore, tab, size):
    given = restore(TEXT, tab)
    assert given[f"{tab}_prompt"] == "a cat"
    assert given[f"{tab}_neg_prompt"] == "a dog"
    assert (given[f"{size}_width"], given[f"{size}_height"]) == (384, 128)
    assert given[f"{tab}_steps"] == 7


@pytest.mark.parametrize("tab", ["txt2img", "img2img", "control"])
@pytest.mark.parametrize(
    ("said", "value"),
    [("T5 FP4", "T5 FP4"), ("None (CLIP only)", "None (CLIP only)"), ('"one, two: three"', "one, two: three"), ("12", "12")],
)
def test_a_field_of_a_script_takes_what_stands_under_its_name(restore, tab, said, value):
    assert restore(f"{TEXT}, Probe text: {said}, Probe tick: True", tab)[f"script_{tab}_sd3_probe_text"] == value


@pytest.mark.parametrize(("said", "value"), [("True", True), ("False", False)])
def test_a_value_becomes_what_the_component_began_with(restore, said, value):
    assert restore(f"{TEXT}, Probe tick: {said}")["script_txt2img_sd3_probe_tick"] is value


def test_a_field_that_the_text_does_not_name_stays_as_it_is(restore):
    assert not [id for id in restore(TEXT) if id and "sd3_probe" in id]


def test_a_function_of_all_the_text_may_answer_with_an_update(restore):
    assert restore(f"{TEXT}, Probe number: 4")["script_txt2img_sd3_probe_number"] == 8


def test_a_function_that_answers_with_a_plain_value_ends_the_whole_restoring(host, restore, switches):
    switches(plain=True)
    with pytest.raises(Exception, match="500"):
        restore(f"{TEXT}, Probe number: 4")
    assert restore(TEXT)["txt2img_steps"] == 7


def test_scripts_are_told_the_text_and_what_was_found_in_it(host, restore):
    before = host.count()
    restore(f"{TEXT}, Probe text: seen")
    (facts,) = [facts for name, facts in host.events(before) if name == "on_infotext_pasted"]
    assert facts["text"].startswith("a cat")
    assert (facts["found"]["Probe text"], facts["found"]["Size-1"], facts["found"]["CFG scale"]) == ("seen", 384, 4.5)


def test_an_empty_prompt_takes_the_last_picture_of_the_page(host, restore):
    (host.data / "params.txt").write_text(f"{TEXT}, Probe text: of the file", encoding="utf-8")
    assert restore("")["script_txt2img_sd3_probe_text"] == "of the file"


def test_a_text_without_entries_is_the_prompt(restore):
    assert restore("just words")["txt2img_prompt"] == "just words"
