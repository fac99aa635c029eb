"""Models, statistics and rows whose truth is known, because it was planted: what tests grade methods against.

Everything is built in memory from a seed, in a second or less; the same seed gives the same numbers.

- ``model``: ``planted_model()``, a Llama with neurons that respond to a language, a word or a topic, and its corpus.
- ``classifier``: ``planted_classifier()``, a Llama that answers XNLI with a known accuracy, and neurons it needs.
- ``carriers``: ``planted_carriers()``, a Llama with neurons that carry a language, a label, both, or a word.
- ``patching``: the first of these recorded and ready to be patched, once for all tests.
- ``statistics``: ``statistics_from()`` of any activations; ``graded_statistics()`` of neurons from easy to hard;
  ``louder_language_neurons()``, which write more than other neurons while only what is written has effects.
- ``recordings``: ``recording()`` of documents that differ in language, in topic, or in nothing.
- ``rows``, ``transfer``: measured rows, and trainings, that differ by a known effect.
- ``network``: what the planted models share.
"""
