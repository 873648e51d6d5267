"""All rules, in the order in which they are asked: the first that knows an entry speaks. What is special comes before what is general.

To add a rule: a line in the file of its subject, its sentences in messages/, and in tests/knowledge/<id>/ an excerpt that matches and one
that is near and must not.
"""

from __future__ import annotations

from sd3deploy.diagnosis import families
from sd3deploy.diagnosis.knowledge import loading, packages, sizes
from sd3deploy.diagnosis.knowledge.remarks import REMARKS
from sd3deploy.diagnosis.rule import Judge, Rule

__all__ = ["JUDGES", "REMARKS", "RULES"]

RULES: tuple[Rule, ...] = (*packages.RULES, *loading.RULES, *sizes.RULES)
JUDGES: tuple[Judge, ...] = (*(rule.judge for rule in RULES), *families.JUDGES)
