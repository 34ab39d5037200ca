"""Programs for contributors. Nothing here is part of the package or of the image."""
