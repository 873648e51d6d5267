from __future__ import annotations

import pytest

from sd3deploy import deps, messages
from sd3deploy.deps import lacking
from sd3deploy.deps.options import Options
from sd3deploy.deps.requirement import Requirement
from sd3deploy.deps.status import State, Status


@pytest.fixture
def missing(monkeypatch):
    """bitsandbytes is not there, the rest is."""

    def check(requirements):
        for one in requirements:
            yield Status(one, State.MISSING if one.name == "bitsandbytes" else State.OK, None, None, "")

    monkeypatch.setattr(lacking, "check", check)
    monkeypatch.setattr(lacking, "requirements", lambda groups: [Requirement(name, "", "") for name in ("accelerate", *groups)])


WORDS = {"deps.offline": "offline", "deps.not_allowed": "switched off", "deps.forbidden": "no server"}


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("options", [Options(offline=True), *(Options(refusal=id) for id in ("deps.not_allowed", "deps.forbidden"))])
def test_what_can_not_be_installed_says_so_in_a_few_words(options):
    found = deps.lack(("bitsandbytes",), options)
    assert found.names == ("bitsandbytes",)
    assert found.refusal == (options.refusal or "deps.offline")
    assert "needs bitsandbytes" in found.sentence
    assert WORDS[found.refusal] in found.sentence
    with messages.speaking("zh"):
        assert found.sentence.startswith("需要 bitsandbytes")


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("options", [Options(), Options(offline=True, extra_args="--no-index --find-links wheels")])
def test_what_is_installed_when_it_is_chosen_stands_in_nobodys_way(options):
    found = deps.lack(("bitsandbytes",), options)
    assert (found.names, found.refusal, found.sentence) == (("bitsandbytes",), "", "")


@pytest.mark.usefixtures("missing")
def test_where_nothing_is_missing_nothing_is_refused():
    assert deps.lack((), Options(refusal="deps.not_allowed")) == deps.Lack()
