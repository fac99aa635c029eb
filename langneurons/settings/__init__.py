"""Settings: groups of options that Python, TOML and the command line share, each declared once.

Nothing heavy is imported here, so that the command line knows its options and their bounds at once.
"""

from langneurons.settings.asking import Asking as Asking
from langneurons.settings.checking import Checked as Checked
from langneurons.settings.checking import ContextLength as ContextLength
from langneurons.settings.checking import Count as Count
from langneurons.settings.checking import Few as Few
from langneurons.settings.checking import Seed as Seed
from langneurons.settings.checking import Settings as Settings
from langneurons.settings.checking import finite_number as finite_number
from langneurons.settings.checking import literal_choices as literal_choices
from langneurons.settings.checking import plain_types as plain_types
from langneurons.settings.checking import possible_values as possible_values
from langneurons.settings.checking import sentence as sentence
from langneurons.settings.checking import shown as shown
from langneurons.settings.checking import whole_number as whole_number
from langneurons.settings.groups import CONDITIONS as CONDITIONS
from langneurons.settings.groups import EXECUTORS as EXECUTORS
from langneurons.settings.groups import IN_WORDS as IN_WORDS
from langneurons.settings.groups import PYTHON_ONLY as PYTHON_ONLY
from langneurons.settings.groups import Adapter as Adapter
from langneurons.settings.groups import Altering as Altering
from langneurons.settings.groups import Attributing as Attributing
from langneurons.settings.groups import Condition as Condition
from langneurons.settings.groups import Controls as Controls
from langneurons.settings.groups import Experiment as Experiment
from langneurons.settings.groups import Match as Match
from langneurons.settings.groups import Probing as Probing
from langneurons.settings.groups import Profiling as Profiling
from langneurons.settings.groups import Prompting as Prompting
from langneurons.settings.groups import Recording as Recording
from langneurons.settings.groups import Resampled as Resampled
from langneurons.settings.groups import Run as Run
from langneurons.settings.groups import TaskScoring as TaskScoring
from langneurons.settings.groups import Testing as Testing
from langneurons.settings.groups import Training as Training
from langneurons.settings.groups import controls_of as controls_of
from langneurons.settings.options import AlteringOptions as AlteringOptions
from langneurons.settings.options import AttributingOptions as AttributingOptions
from langneurons.settings.options import ConfusionOptions as ConfusionOptions
from langneurons.settings.options import ControlledOptions as ControlledOptions
from langneurons.settings.options import ExperimentOptions as ExperimentOptions
from langneurons.settings.options import FinetuningOptions as FinetuningOptions
from langneurons.settings.options import MatchingOptions as MatchingOptions
from langneurons.settings.options import MeasuringOptions as MeasuringOptions
from langneurons.settings.options import ProbingOptions as ProbingOptions
from langneurons.settings.options import ProfilingOptions as ProfilingOptions
from langneurons.settings.options import PromptingOptions as PromptingOptions
from langneurons.settings.options import RecordingOptions as RecordingOptions
from langneurons.settings.options import RunOptions as RunOptions
from langneurons.settings.options import TaskScoringOptions as TaskScoringOptions
from langneurons.settings.options import TestingOptions as TestingOptions
from langneurons.settings.options import TrainingOptions as TrainingOptions
from langneurons.settings.options import with_options as with_options
