"""Several trained models that decide together."""
