"""What a checkpoint's config.json says about the model. Pure: the inspection, the operator and its CLI all use it."""
