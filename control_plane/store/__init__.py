"""Everything that is kept, and the one place that knows SQL."""
