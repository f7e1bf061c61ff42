"""The scheduling policies, one small file each, and how one is found by its name."""

from __future__ import annotations

import importlib
import sys

from scheduler_proc.policies.fair import Fair
from scheduler_proc.policies.fcfs import Fcfs
from scheduler_proc.policies.lpm import Lpm
from scheduler_proc.policies.policy import KeyPolicy, Policy
from scheduler_proc.policies.priority import Priority
from scheduler_proc.policies.sjf import Sjf

__all__ = ["KeyPolicy", "Policy", "PolicyError", "find_policy"]

POLICIES: dict[str, type[Policy]] = {"fcfs": Fcfs, "priority": Priority, "sjf": Sjf, "lpm": Lpm, "fair": Fair}


class PolicyError(ValueError):
    """There is no such policy; the text says what is wrong with the name."""


def find_policy(name: str) -> type[Policy]:
    """A policy of this package, or `my_module:MyPolicy` from the current folder or PYTHONPATH. Raises PolicyError."""
    if name in POLICIES:
        return POLICIES[name]
    module_name, _, class_name = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # the current folder, behind everything that is installed
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise PolicyError(f"--scheduling-policy {name}: {error}; is the file in the current folder?") from error
    except AttributeError:
        raise PolicyError(f"--scheduling-policy {name}: {module_name} has no {class_name}") from None
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise PolicyError(f"--scheduling-policy {name}: it is no subclass of scheduler_proc.policies.Policy")
    return found
