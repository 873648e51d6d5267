from __future__ import annotations

from dataclasses import replace

import pytest

from sd3deploy import deps, messages
from sd3deploy.deps import lacking
from sd3deploy.deps.damage import Damage
from sd3deploy.deps.options import Options
from sd3deploy.deps.requirement import Requirement
from sd3deploy.deps.status import State, Status


@pytest.fixture
def found(monkeypatch):
    """A function that says what is looked at: package → what its status is made with. The rest is in order."""

    def have(**states):
        def check(requirements):
            return tuple(Status(one, states.get(one.name, State.OK), None, None, "") for one in requirements)

        monkeypatch.setattr(lacking, "check", check)

    monkeypatch.setattr(lacking, "requirements", lambda groups: [Requirement(name, "", "") for name in ("accelerate", *groups)])
    return have


@pytest.fixture
def missing(found):
    """bitsandbytes is not there, the rest is."""
    found(bitsandbytes=State.MISSING)


WORDS = {"deps.offline": "offline", "deps.not_allowed": "switched off", "deps.forbidden": "no server"}
FORBIDDEN = [Options(offline=True), *(Options(refusal=id) for id in ("deps.not_allowed", "deps.forbidden"))]


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("options", FORBIDDEN)
def test_what_can_not_be_installed_says_so_in_a_few_words(options):
    found = deps.lack(("bitsandbytes",), options)
    assert found.names == found.installs == ("bitsandbytes",)
    assert "needs bitsandbytes" in found.refusal
    assert WORDS[options.refusal or "deps.offline"] in found.refusal
    with messages.speaking("zh"):
        assert deps.lack(("bitsandbytes",), options).refusal.startswith("需要 bitsandbytes")


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("options", [Options(), Options(offline=True, extra_args="--no-index --find-links wheels")])
def test_what_is_installed_when_it_is_chosen_stands_in_nobodys_way(options):
    found = deps.lack(("bitsandbytes",), options)
    assert (found.names, found.installs, found.refusal) == (("bitsandbytes",), ("bitsandbytes",), "")


@pytest.mark.usefixtures("missing")
def test_where_nothing_is_missing_nothing_is_refused():
    assert deps.lack((), Options(refusal="deps.not_allowed")) == deps.Lack()


@pytest.mark.parametrize("options", [Options(), *FORBIDDEN])
def test_what_was_replaced_on_disk_waits_for_a_restart_wherever_the_server_is(found, options):
    found(accelerate=State.STALE)
    lack = deps.lack(("bitsandbytes",), options)
    assert (lack.names, lack.installs) == (("accelerate",), ())
    assert "accelerate" in lack.refusal
    assert "restart" in lack.refusal


def _broken(found, monkeypatch, **more):
    found(bitsandbytes=State.BROKEN)
    check = lacking.check
    monkeypatch.setattr(lacking, "check", lambda those: [one if one.state is State.OK else replace(one, **more) for one in check(those)])


@pytest.mark.parametrize("options", [Options(), *FORBIDDEN])
def test_what_only_has_to_be_swept_is_installed_by_nobody_and_refused_to_nobody(found, monkeypatch, options):
    _broken(found, monkeypatch, installed="0.49.0", damages=frozenset({Damage.RESIDUE}))
    assert deps.lack(("bitsandbytes",), options) == deps.Lack(("bitsandbytes",))


@pytest.mark.parametrize("options", [Options(), *FORBIDDEN])
def test_what_belongs_to_others_is_not_promised(found, monkeypatch, options):
    _broken(found, monkeypatch, installed="0.49.0", damages=frozenset({Damage.NO_RECORD}), owners=("bitsandbytes-fork",))
    lack = deps.lack(("bitsandbytes",), options)
    assert (lack.names, lack.installs) == (("bitsandbytes",), ())
    assert "bitsandbytes-fork" in lack.refusal
