"""How each TransformerLens class runs, and where its weights stand."""
