"""The causes that people meet, in the words that pip and uv have for them. Excerpts of real runs, names and paths shortened."""

import pytest

from sd3deploy.deps import Options, Requirement, plan
from sd3deploy.deps.candidate import failed
from sd3deploy.deps.failure import _SIGNATURES, classify
from sd3deploy.deps.status import Facts, judge

PIP_NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by \
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a new connection: \
[Errno -3] Temporary failure in name resolution')': /simple/six/
ERROR: Could not find a version that satisfies the requirement six (from versions: none)
ERROR: No matching distribution found for six
"""
PIP_NO_WHEEL = """\
ERROR: Ignored the following versions that require a different python version: 0.50.0 Requires-Python >=3.10
ERROR: Could not find a version that satisfies the requirement bitsandbytes>=0.48 (from versions: 0.41.0, 0.42.0)
ERROR: No matching distribution found for bitsandbytes>=0.48
"""
PIP_CONFLICT = """\
ERROR: Cannot install torch==2.4.0 because these package versions have conflicting dependencies.
The conflict is caused by:
    The user requested torch==2.4.0
    The user requested (constraint) torch==2.3.1
ERROR: ResolutionImpossible: for help visit the documentation
"""
PIP_MANAGED = """\
error: externally-managed-environment

× This environment is externally managed
╰─> To install Python packages system-wide, try apt install python3-xyz, where xyz is the package you are trying to install.
"""
PIP_NO_RECORD = """\
error: uninstall-no-record-file

× Cannot uninstall numpy 2.1.2
╰─> The package's contents are unknown: no RECORD file was found for numpy.
"""
UV_NO_NETWORK = """\
error: Request failed after 3 retries
  Caused by: Failed to fetch: `…/simple/six/`
  Caused by: error sending request for url (…/simple/six/)
  Caused by: client error (Connect)
  Caused by: dns error: failed to lookup address information: Temporary failure in name resolution
"""
UV_NO_VERSION = """\
  × No solution found when resolving dependencies:
  ╰─▶ Because there is no version of six==99 and you require six==99, we can conclude that your requirements are unsatisfiable.
"""


@pytest.mark.parametrize(
    ("output", "code", "id"),
    [
        (PIP_NO_NETWORK, 1, "deps.no_network"),
        (PIP_NO_WHEEL, 1, "deps.no_wheel"),
        (PIP_CONFLICT, 1, "deps.conflict"),
        (PIP_MANAGED, 1, "deps.externally_managed"),
        (PIP_NO_RECORD, 1, "deps.no_record"),
        (UV_NO_NETWORK, 2, "deps.no_network"),
        (UV_NO_VERSION, 1, "deps.no_wheel"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", 1, "deps.disk_full"),
        ("ERROR: Could not install packages due to an OSError: [WinError 112] There is not enough space on the disk", 1, "deps.disk_full"),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/usr/lib/x'\n", 1, "deps.no_permission"),
        ("ERROR: Could not install packages due to an OSError: [Errno 30] Read-only file system: '/x'\n", 1, "deps.no_permission"),
        ("ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\x.pyd'\n", 1, "deps.no_permission"),
        ("PermissionError: [WinError 32] The process cannot access the file because it is being used by another process", 1, "deps.in_use"),
        ("urllib3.exceptions.SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed\n", 1, "deps.certificate"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n", 1, "deps.bad_download"),
        ("no such option: --report\n", 2, "deps.old_pip"),
        ("/venv/bin/python: No module named pip\n", 1, "deps.no_pip"),
        ("Installing collected packages: numpy\n", -9, "deps.interrupted"),
        ("", 137, "deps.interrupted"),
        ("Something else\nERROR: of a kind that nobody has seen\nbye\n", 1, "deps.failed"),
        ("", 1, "deps.failed"),
        ("", 0, "deps.failed"),
    ],
)
def test_cause(output, code, id):
    assert classify(output, code)[0] == id


def test_the_telling_line_is_kept():
    assert classify(PIP_NO_WHEEL, 1)[1].endswith("(from versions: 0.41.0, 0.42.0)")
    assert classify("one\nERROR: two\nthree\n", 1)[1] == "ERROR: two"
    assert classify("", 1)[1] == "exit code 1"


@pytest.mark.parametrize("id", [*(id for id, _ in _SIGNATURES), "deps.interrupted", "deps.failed"])
def test_every_cause_has_a_sentence_and_a_remedy(id, monkeypatch):
    todo = plan([judge(Requirement("toy", ">=2"), Facts(None, None))], Options())
    monkeypatch.setattr("sd3deploy.deps.candidate.classify", lambda output, code: (id, "the line"))
    error = failed(todo, 1, "", todo.command)
    assert error.remedy
    assert "{" not in str(error)
