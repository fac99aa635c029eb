"""Tasks: what a model is asked to do in each language, scored item by item so that conditions can be paired."""
