"""Whose the neurons are: scores from activation statistics, and the labelled neuron sets they give."""

from langneurons.identification.activation import ActivationProbability, MeanActivation, MeanDifference, Random
from langneurons.identification.contrast import Contrast
from langneurons.identification.detection import AUROC, TokenAP
from langneurons.identification.lape import LAPE, EntropyLambda
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.optional import GradientRelevance, SentenceAP
from langneurons.identification.scores import Scores
from langneurons.identification.selection import Method

__all__ = [
    "AUROC",
    "LAPE",
    "ActivationProbability",
    "Contrast",
    "EntropyLambda",
    "GradientRelevance",
    "MeanActivation",
    "MeanDifference",
    "Method",
    "NeuronSet",
    "Random",
    "Scores",
    "SentenceAP",
    "TokenAP",
]
