"""What tests of tasks share."""

from tests.tasks.toy_task import cloze as cloze
