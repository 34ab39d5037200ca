"""Keeps the PodDisruptionBudget of the replicas. Pure."""

from __future__ import annotations

from qwen_operator.reconcile.types import Course, Step
from qwen_operator.replicas.disruption_budget import budget_actions


def budget(course: Course) -> Step:
    """Protects what runs; nothing where no revision is to run."""
    if course.running is None or course.rules is None:
        return Step(course)
    return Step(course, budget_actions(course.observed.owner, course.observed.budgets, course.replicas, course.rules))
