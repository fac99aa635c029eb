"""Analysis: understanding neurons and scores."""
