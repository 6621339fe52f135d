"""What will work on this machine and what will not, before a run is tried: `parity doctor`."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from parity.doctor import gpus, network, software, system
from parity.doctor.place import LEVELS, Finding, Place, this_place

__all__ = ["LEVELS", "Finding", "Place", "examine", "this_place"]


def examine(place: Place, pythons: Mapping[str, str]) -> list[Finding]:
    """All findings, by topic; `pythons` names the interpreter of each framework that has one."""
    sides = {"parity": sys.executable, **pythons}
    installed = {python: software.read_packages(place, python) for python in dict.fromkeys(sides.values())}
    packages = {side: installed[python] for side, python in sides.items()}
    facts = {name: software.read_facts(place, name, python) for name, python in pythons.items()}
    known = {name: told for name, told in facts.items() if told is not None}
    found = gpus.read_gpus(place)
    return [
        *software.package_findings(software.read_requirements(), packages),
        *software.extra_findings(packages),
        *software.wheel_findings(packages),
        *software.worker_findings(place, facts),
        *system.system_findings(place, bool(found)),
        *gpus.gpu_findings(place, found, known),
        *network.launcher_findings(place, known),
        *network.meeting_findings(place),
        *network.proxy_findings(place),
        *network.slingshot_findings(place, bool(found)),
    ]
