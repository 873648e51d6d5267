"""What this extension needs, whether it is there and healthy, and how to get it without moving anything of the host.

    requirements() → check() → plan() → apply()      the four steps; ensure() is all of them, mend() all that is wrong, one by one
    diagnose_numpy(), repair()                       a host package whose files are broken, back to the host's version
    prove_bitsandbytes()                             a tensor really quantized, because a broken native library imports without error

Importing this costs the standard library and `packaging`: install.py runs at every full start of the host.
"""

from __future__ import annotations

from sd3deploy.deps.candidate import resolve
from sd3deploy.deps.execution import Outcome, apply
from sd3deploy.deps.lacking import Lack, lack
from sd3deploy.deps.mending import Failure, ensure, mend
from sd3deploy.deps.options import Options
from sd3deploy.deps.planning import Change, Plan, plan
from sd3deploy.deps.present import require_packages
from sd3deploy.deps.proof import has_wheel, prove_bitsandbytes
from sd3deploy.deps.repairing import diagnose, diagnose_numpy, repair
from sd3deploy.deps.requirement import Requirement, groups, host_packages, requirements
from sd3deploy.deps.status import State, Status, check

__all__ = [
    "Change",
    "Failure",
    "Lack",
    "Options",
    "Outcome",
    "Plan",
    "Requirement",
    "State",
    "Status",
    "apply",
    "check",
    "diagnose",
    "diagnose_numpy",
    "ensure",
    "groups",
    "has_wheel",
    "host_packages",
    "lack",
    "mend",
    "plan",
    "prove_bitsandbytes",
    "repair",
    "require_packages",
    "requirements",
    "resolve",
]
