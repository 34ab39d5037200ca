"""What a GPU is, and which ones there are."""
