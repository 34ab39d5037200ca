"""Spec, facts and inventory to a plan, or to a refusal with the arithmetic."""
