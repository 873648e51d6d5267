from __future__ import annotations

import numpy as np
import pytest
import torch

from sd3deploy import tiny_sd3
from sd3deploy.guards.job import MODELS, Job
from sd3deploy.guards.prompt import check, read_prompt


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusion3Pipeline

    found = StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), torch_dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


def found(*prompts, **job):
    return list(check(Job(MODELS["sd3-medium"], 64, 64, prompts=prompts, **job)))


def long(words, last="the end"):
    return " ".join(["cat"] * words + [last])


def test_tokens_are_those_of_the_models_own_tokenizers(pipeline):
    text = long(100)
    prompt = read_prompt(text, pipeline, t5=True)
    assert prompt.clip == len(pipeline.tokenizer(text).input_ids)
    assert prompt.t5 == len(pipeline.tokenizer_3(text).input_ids)
    assert prompt.clip_limit == 77
    assert read_prompt(text, pipeline, t5=False).t5 is None


def test_short_prompts_are_not_counted(pipeline):
    class Never:
        model_max_length = 77

        def __call__(self, *args, **kwargs):
            raise AssertionError("counted")

    class Pipeline:
        tokenizer = tokenizer_3 = Never()

    assert read_prompt("a cat holding a sign", Pipeline(), t5=True).clip <= 77
    with pytest.raises(AssertionError, match="counted"):
        read_prompt("猫" * 30, Pipeline(), t5=True)  # 90 bytes: a letter may be as many tokens


def test_a_prompt_that_fits_is_not_mentioned(pipeline):
    for t5 in (True, False):
        assert found(read_prompt("a cat", pipeline, t5), t5=t5) == []
    assert found(read_prompt(long(100), pipeline, True), t5=True) == []  # beyond CLIP alone


def test_without_t5_what_clip_does_not_read_is_shown(pipeline):
    prompt = read_prompt(long(400), pipeline, t5=False)
    assert prompt.clip_rest.endswith("the end")
    (cut,) = found(prompt, t5=False, prompt_attention="fixed")
    assert (cut.id, cut.severity) == ("prompt.clip-cut", "warning")
    assert str(prompt.clip) in cut.message
    (pieces,) = found(prompt, t5=False, prompt_attention="native")
    assert (pieces.id, pieces.severity) == ("prompt.clip-pieces", "advice")
    assert len(pieces.message) < 400


def test_what_is_said_to_be_cut_is_what_the_pipeline_does_not_see(pipeline):
    """Without T5, a change behind the 77th token changes nothing; one in front of it does."""

    def embeddings(text):
        return pipeline._get_clip_prompt_embeds(text)[0].detach().numpy()

    text = long(400)
    rest = read_prompt(text, pipeline, t5=False).clip_rest
    kept = text[: text.rindex(rest)]
    assert np.array_equal(embeddings(text), embeddings(kept + "quite another end"))
    assert not np.array_equal(embeddings(text), embeddings("dog " + text))


def test_with_t5_its_limit_counts(pipeline):
    prompt = read_prompt(long(300), pipeline, t5=True)
    (cut,) = found(prompt, t5=True)
    assert cut.id == "prompt.t5-cut"
    assert "MAX_SEQUENCE_LENGTH=512" in cut.remedy
    assert found(read_prompt(long(300), pipeline, True, t5_limit=512), t5=True) == []
    assert [one.id for one in found(read_prompt(long(600), pipeline, True, t5_limit=512), t5=True)] == ["prompt.t5-most"]
    assert found(prompt, t5=True, prompt_attention="xhinker") == []  # it has no limit


def test_the_negative_prompt_is_called_so(pipeline):
    (cut,) = found(read_prompt(long(300), pipeline, True, negative=True), t5=True)
    assert cut.message.startswith("The negative prompt has")


def test_xhinker_without_t5_is_switched_for_this_job():
    (switched,) = found(t5=False, prompt_attention="xhinker")
    assert (switched.id, switched.change) == ("prompt.xhinker", {"prompt_attention": "native"})
    assert found(t5=True, prompt_attention="xhinker") == []
