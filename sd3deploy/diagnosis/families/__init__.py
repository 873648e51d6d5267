"""Families of failures: each decides by the structure of one (types, modules, frames, numbers), whatever its words are.

A family is a module with KINDS, what it can conclude, and `judge(failure, seen)`, which says which of them it is, or None. They are asked
in the order of JUDGES, after the rules of `knowledge`; docs/diagnosis.md explains how to add one.
"""

from __future__ import annotations

from sd3deploy.diagnosis.families import device, files, memory, names, native, network, pip, shapes, types
from sd3deploy.diagnosis.rule import Judge, Kind

__all__ = ["BY_NAME", "JUDGES", "KINDS"]

_FAMILIES = (memory, pip, device, native, types, shapes, network, files, names)
JUDGES: tuple[Judge, ...] = tuple(family.judge for family in _FAMILIES)
BY_NAME: dict[str, dict[str, Kind]] = {family.__name__.rpartition(".")[2]: family.KINDS for family in _FAMILIES}
KINDS: dict[str, Kind] = {id: kind for kinds in BY_NAME.values() for id, kind in kinds.items()}
