from .neurons import act_prob_90p_neurons as act_prob_90p_neurons
from .neurons import lape_neurons as lape_neurons
from .neurons import published_patch as published_patch
from .protocols import PadPositionHead as PadPositionHead
from .protocols import ProtocolComparison as ProtocolComparison
from .protocols import compare_protocols as compare_protocols
from .statistics import PublishedStatistics as PublishedStatistics
from .statistics import published_statistics as published_statistics
