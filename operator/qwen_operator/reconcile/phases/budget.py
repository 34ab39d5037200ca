"""Keeps the PodDisruptionBudgets of the replicas. Pure."""

from __future__ import annotations

from qwen_operator.reconcile.types import Course, Step
from qwen_operator.replicas.disruption_budget import budget_actions, worker_budget_actions


def budget(course: Course) -> Step:
    """Protect the running replicas. Without a revision to run, there is nothing to protect."""
    if course.running is None or course.rules is None:
        return Step(course)
    owner, budgets = course.observed.owner, course.observed.budgets
    pods = course.running.plan.nodes_per_replica
    return Step(
        course,
        (
            *budget_actions(owner, budgets, course.replicas, course.rules),
            *worker_budget_actions(owner, budgets, course.replicas, course.rules, pods),
        ),
    )
