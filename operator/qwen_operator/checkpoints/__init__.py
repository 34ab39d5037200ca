"""What a model is: shapes, bytes, and how it can be split."""
