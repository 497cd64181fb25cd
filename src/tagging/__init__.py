"""Tag recordings with trained models."""
