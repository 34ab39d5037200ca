"""From spec, facts and inventory to a plan, or to a refusal with its arithmetic."""
