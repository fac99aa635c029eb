"""Where work runs, what it will cost, and who works in a folder."""

from langneurons.run.cost import Cost as Cost
from langneurons.run.cost import timed as timed
from langneurons.run.executors import PIECES_PER_WORKER as PIECES_PER_WORKER
from langneurons.run.executors import Executor as Executor
from langneurons.run.executors import RayExecutor as RayExecutor
from langneurons.run.executors import ThisProcess as ThisProcess
from langneurons.run.executors import chosen_executor as chosen_executor
from langneurons.run.folders import alone_in_out as alone_in_out
from langneurons.run.folders import working_in as working_in
from langneurons.run.progress import Progress as Progress
from langneurons.run.progress import say as say
