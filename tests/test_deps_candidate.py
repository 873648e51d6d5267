"""Which versions are chosen, so that what is installed stays as it is."""

import pytest

from sd3deploy.deps.candidate import Candidate, examine
from tests.deps_lab import bare

HOST = frozenset({"torch", "numpy"})


def test_what_is_there_and_fits_is_nothing_to_do():
    wanted = [Candidate("toy", "1.0", ("torch>=2.4", "PyYAML", "extra; extra == 'dev'", "old; python_version < '3'", "???"))]
    assert examine(wanted, {"torch": "2.13.0+cpu", "pyyaml": "6.0"}, HOST) == ((), None)


def test_what_is_missing_is_added_unless_it_is_the_hosts():
    missing, clash = examine([Candidate("toy", "1.0", ("torch>=2.4", "PyYAML>=6"))], {}, HOST)
    assert [str(one) for one in missing] == ["PyYAML>=6"]
    assert clash is None


def test_what_does_not_fit_is_a_clash():
    _, clash = examine([Candidate("toy", "1.0", ("torch>=2.4",))], {"torch": "2.3.1+cu121"}, HOST)
    assert (clash.package, clash.needed, clash.found) == ("torch", ">=2.4", "2.3.1+cu121")


def test_candidates_may_need_each_other():
    assert examine([Candidate("a", "1.0", ("b>=2",)), Candidate("b", "2.0", ())], {"b": "1.0"}, HOST) == ((), None)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """torch 2.3 of the host; toys of which the newer ones need a newer torch; a helper that is not installed; a package with demands."""
    lab = bare(tmp_path_factory.mktemp("candidate"))
    lab.toy("2.3.1", "2.4.0", name="torch")
    lab.toy("1.0", needs=("torch>=2.0", "sd3helper>=1"))
    lab.toy("1.1", needs=("torch>=2.4",))
    lab.toy("1.0", "2.0", "3.0", name="sd3helper")
    lab.toy("1.0", name="sd3greedy", needs=("torch>=2.4",))
    lab.toy("1.0", name="sd3strict", needs=("sd3helper<3", "missing; extra == 'x'"))
    lab.install("torch==2.3.1")
    lab.install("sd3strict")
    return lab


SHOW = """
from sd3deploy.deps.candidate import resolve
options = deps.Options(extra_args=os.environ["EXTRA"])
def resolved(*lines):
    try:
        return [f"{one.name}{one.specifier}" for one in resolve(deps.plan(deps.check(needs(*lines)), options), options).changes]
    except errors.DependencyError as error:
        return [error.id, str(error)]
"""


def test_goes_down_until_the_host_need_not_move_and_adds_what_is_missing(lab):
    """The newest needs a newer torch; the one that fits needs a helper, which another package allows only below 3."""
    assert lab.json(SHOW + 'print(json.dumps(resolved("sd3toy")))', EXTRA=lab.offline_args) == ["sd3toy==1.0", "sd3helper==2.0"]


def test_refuses_rather_than_moves(lab):
    one, other = lab.json(SHOW + 'print(json.dumps([resolved("sd3toy >=1.1"), resolved("sd3greedy")]))', EXTRA=lab.offline_args)
    assert one[0] == other[0] == "deps.host_package"
    assert "sd3greedy 1.0 needs torch>=2.4, but torch 2.3.1 is installed" in other[1]


def test_demands_that_nothing_can_meet_do_not_stop_us(lab):
    """sd3strict asks for a helper below 3, we need 3: the host lives with such contradictions, pip would only warn."""
    assert lab.json(SHOW + 'print(json.dumps(resolved("sd3helper >=3")))', EXTRA=lab.offline_args) == ["sd3helper==3.0"]


def test_unknown_package(lab):
    assert lab.json(SHOW + 'print(json.dumps(resolved("sd3nowhere")))', EXTRA=lab.offline_args)[0] == "deps.no_wheel"
