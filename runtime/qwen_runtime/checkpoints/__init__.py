"""The model that a checkpoint's config.json describes. Pure: the inspection, the operator and its CLI all use it."""
