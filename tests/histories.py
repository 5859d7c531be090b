"""Random histories of operations, tried against a reference by Hypothesis."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def try_histories(machine: type[RuleBasedStateMachine], operations: int, *, length: int) -> None:
    """Try about so many operations, or as many as `TRIPLETMAS_STEPS` says, in histories of this length; a failure
    prints the shortest one. Fewer than a thousand are the same ones each time."""
    asked = int(os.environ.get("TRIPLETMAS_STEPS", operations))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max(1, asked // length),
            stateful_step_count=length,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            derandomize=operations < 1000,
            database=None,
        ),
    )
