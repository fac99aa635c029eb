"""Identification: each language's neurons, by every method in every language set."""

from collections.abc import Iterator

from langneurons.study.stages import Plan, Stage, Step
from langneurons.study.tables import MethodPart
from langneurons.study.wording import make_method, published_neurons
from langneurons.study.work import Work


class IdentifyStage(Stage[MethodPart], name="identify", section="neurons"):
    """Neuron sets; their settings are the study's ``methods``."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each method in each language set."""
        for language_set, languages in plan.config.sets.items():
            for method, part in plan.config.methods.items():
                settings = {**part.model_dump(exclude={"published_as"}), "languages": languages}
                read = plan.of("published" if part.published else "record", model)
                yield Step(self, settings, (read,), model, language_set, method)

    def run(self, step: Step, work: Work) -> None:
        """Identify neurons in recorded or published statistics."""
        part, languages = work.config.methods[step.method], step.settings["languages"]
        published = work.published(step)
        if published is not None:
            neurons = published_neurons(part.method, part.options, published, languages)
        else:
            stats = work.statistics(step.input("record"))
            stats = stats if part.site is None else stats.at(part.site)
            neurons = make_method(part.method, part.options).identify(stats.select(languages))
        neurons.save(work.result(step) / "neurons.json")
