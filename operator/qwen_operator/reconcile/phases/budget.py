"""Keeps the PodDisruptionBudget of the replicas. Pure."""

from __future__ import annotations

from qwen_operator.reconcile.types import Course, Step
from qwen_operator.replicas.disruption_budget import budget_actions


def budget(course: Course) -> Step:
    """Protect the running replicas. Without a revision to run, there is nothing to protect."""
    if course.running is None or course.rules is None:
        return Step(course)
    return Step(course, budget_actions(course.observed.owner, course.observed.budgets, course.replicas, course.rules))
