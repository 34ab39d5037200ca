"""Facts of a model: shapes, bytes, and how it can be split over GPUs."""
