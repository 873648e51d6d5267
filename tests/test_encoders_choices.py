from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sd3deploy import messages
from sd3deploy.device import Device, detect_device
from sd3deploy.encoders import choices
from sd3deploy.errors import EncoderError, SettingError

RECOMMENDED = ["none", "q4", "q5", "q6", "q8", "bf16"]
CPU = detect_device("cpu", "cpu")
TURING = Device("cuda:0", "cuda", "RTX 2060", (7, 5), bf16=False)
AMPERE = Device("cuda:0", "cuda", "RTX 3060", (8, 6))
PASCAL = Device("cuda:0", "cuda", "GTX 1060", (6, 1), bf16=False)
ZLUDA = Device("cuda:0", "zluda", "RX 6600", (8, 0), bf16=False)


def suitable(device):
    return [choice.id for choice in choices.suitable(device)]


def test_what_runs_where():
    everything = [choice.id for choice in choices.CHOICES]
    assert suitable(CPU) == suitable(AMPERE) == everything
    assert suitable(TURING) == [id for id in everything if id != "bf16"]
    assert suitable(PASCAL) == [id for id in everything if id not in ("bf16", "int8")]
    assert suitable(ZLUDA) == ["none", "q4", "q5", "q6", "q8", "fp8", "default"]
    assert suitable(Device("mps", "mps", "Apple GPU", fp8=False)) == [id for id in everything if id != "fp8"]


def test_a_refusal_says_why_and_what_instead():
    with pytest.raises(EncoderError, match=r"does not run on zluda.*T5 Q4, T5 Q5, T5 Q6, T5 Q8, T5 FP8\."):
        choices.require(choices.find("fp4"), ZLUDA)
    with pytest.raises(EncoderError, match=r"needs compute capability 7\.5, GTX 1060 has 6\.1"):
        choices.require(choices.find("int8"), PASCAL)


@pytest.mark.parametrize(("asked", "device", "taken"), [("fp4", ZLUDA, "T5 Q4"), ("int8", PASCAL, "T5 Q8"), ("bf16", TURING, "T5 INT8")])
def test_a_refusal_offers_what_is_nearest_in_size(asked, device, taken):
    with pytest.raises(EncoderError) as raised:
        choices.require(choices.find(asked), device)
    (button,) = raised.value.buttons
    assert (button.id, button.label, button.fields) == ("apply", f"Apply: take {taken} as text encoder", {"encoder": taken})


def test_labels_carry_size_and_reason():
    assert choices.label(choices.find("q4")) == "T5 Q4 – 2.7 GB"
    assert choices.label(choices.find("fp4")) == "T5 FP4 – 2.7 GB"
    assert choices.label(choices.NONE) == "None (CLIP only)"
    assert "bfloat16" in choices.label(choices.find("bf16"), TURING)


def test_what_the_screen_shows_is_the_languages_and_what_is_stored_is_not():
    with messages.speaking("zh"):
        shown = {choice.id: choice.shown for choice in choices.CHOICES}
        assert choices.label(choices.NONE) == shown["none"]
        assert choices.find(shown["default"]) is choices.HOST_DEFAULT
    assert (shown["none"], shown["default"], shown["q4"]) == ("无（仅 CLIP）", "SD.Next 默认", "T5 Q4")
    assert choices.find(shown["none"]).name == "None (CLIP only)"  # in a request of another language, too


@pytest.mark.parametrize("value", ["T5 FP4", "t5 fp4", " fp4 ", "FP4"])
def test_names_in_any_spelling(value):
    assert choices.find(value).id == "fp4"


NEAREST = [("T5 FP5", "T5 FP"), ("bf-16", "T5 BF16"), (4, "Host default"), (None, "Host default"), ([], "Host default")]


@pytest.mark.parametrize(("value", "nearest"), NEAREST)
def test_a_value_that_means_nothing_is_answered_with_the_nearest(value, nearest):
    with pytest.raises(SettingError) as caught:
        choices.find(value)
    assert nearest in caught.value.remedy


FORMER = {"q5": ["T5 NF4 + INT8", " nf4-INT8 "], "q4": ["T5 UINT4 (SDNQ)", "t5 uint4 (sdnq)", "uint4"]}


@pytest.mark.parametrize(("id", "value"), [(id, value) for id, values in FORMER.items() for value in values])
def test_a_former_choice_is_answered_with_what_took_its_place(id, value):
    new = choices.successor(value)
    assert new is choices.find(id)
    with pytest.raises(SettingError, match=rf"^{re.escape(repr(value))} is no longer .*: {new.name} has taken its place\.") as caught:
        choices.find(value)
    assert caught.value.id == "setting.encoder-gone"
    assert new.name in caught.value.remedy


@pytest.mark.parametrize("value", ["T5 Q4", "T5 FP5", "Host default", "", 4, None, ["uint4"]])
def test_nothing_else_has_a_successor(value):
    assert choices.successor(value) is None


def test_those_that_need_no_package_come_first_and_the_others_follow():
    assert [choice.id for choice in choices.CHOICES] == [*RECOMMENDED, "fp4", "nf4", "int8", "fp8", "default"]
    assert not any(choices.find(id).groups for id in RECOMMENDED)


def test_every_choice_has_a_sentence():
    assert all(choice.sentence.endswith(".") for choice in choices.CHOICES)


def test_the_compute_type_follows_the_hardware():
    assert AMPERE.compute_dtype == "bfloat16"
    assert replace(AMPERE, bf16=False).compute_dtype == "float16"
