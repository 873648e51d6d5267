from __future__ import annotations

import posixpath
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd3deploy.encoders.hub import Spec
from sd3deploy.encoders.hub.spec import DEFAULT
from sd3deploy.errors import EncoderError


@pytest.mark.parametrize(
    ("text", "repository", "path", "revision"),
    [
        (DEFAULT, "comfyanonymous/flux_text_encoders", "t5xxl_fp16.safetensors", None),
        (" 'city96/t5-v1_1-xxl-encoder-gguf:t5-v1_1-xxl-encoder-Q8_0.gguf' ", "city96/t5-v1_1-xxl-encoder-gguf",
         "t5-v1_1-xxl-encoder-Q8_0.gguf", None),
        ("black-forest-labs/FLUX.1-dev:text_encoder_2/", "black-forest-labs/FLUX.1-dev", "text_encoder_2/", None),
        ("o/n", "o/n", "", None),
        ("o/n@refs/pr/1:a/b c.safetensors", "o/n", "a/b c.safetensors", "refs/pr/1"),
        ("https://huggingface.co/o/n", "o/n", "", None),
        ("https://huggingface.co/o/n/blob/main/a/b.gguf", "o/n", "a/b.gguf", None),
        ("https://huggingface.co/o/n/resolve/abc/b.gguf?download=true", "o/n", "b.gguf", "abc"),
        ("https://huggingface.co/o/n/tree/main/text_encoder_2", "o/n", "text_encoder_2/", None),
    ],
)  # fmt: skip
def test_what_a_user_may_write(text, repository, path, revision):
    found = Spec.parse(text)
    assert (found.repository, found.path, found.revision) == (repository, path, revision)
    assert Spec.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["x", "/a/b", "./a/b", "a/b/c", "a/b:../c", "a/b:c/../d", "a//b", "a b/c", "-a/b", "a/b-", "a/b..c", "C:\\a\\b", "a/b:c\nd"]
)
def test_what_is_no_repository(text):
    with pytest.raises(EncoderError) as caught:
        Spec.parse(text)
    assert caught.value.id == "hub.spec"
    assert DEFAULT in caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        *(f"a/b@{revision}:c" for revision in ("..", "../x", "main/../../x", "/etc/passwd", "a//b", "a/", ".git", "./a", "-a")),
        "https://huggingface.co/a/b/resolve/../c",
        "a/b:C:/d",
    ],
)
def test_no_part_of_a_name_is_a_way_out_of_the_repository(text):
    with pytest.raises(EncoderError) as caught:
        Spec.parse(text)
    assert caught.value.id == "hub.spec"


@given(st.text("./\\:@ab-", min_size=1))
def test_a_revision_is_below_where_revisions_are(text):
    found = None
    with suppress(EncoderError):
        found = Spec.parse(f"o/n@{text}:p")
    if found is not None:
        assert found.revision == posixpath.normpath(found.revision)
        assert not found.revision.startswith(("/", ".", "-"))


@pytest.mark.parametrize("text", ["", "  ", None, 5])
def test_none_at_all(text):
    with pytest.raises(EncoderError) as caught:
        Spec.parse(text)
    assert caught.value.id == "hub.unset"


@given(st.text())
def test_anything_is_a_repository_or_refused(text):
    found = None
    with suppress(EncoderError):
        found = Spec.parse(text)
    assert found is None or Spec.parse(str(found)) == found
