"""While a model generates, one knows which positions of the running forward are its prompt's."""

import pytest
import torch
from transformer_lens.hook_points import HookPoint

from langneurons.models.running import following


class Machine:
    """Something that generates: every number is the length of a forward it runs."""

    def __init__(self):
        self.input_point = HookPoint()

    def forward(self, positions):
        self.input_point(torch.zeros(1, positions, 2))

    def generate(self, *lengths, fail=False):
        """Run forwards of these lengths."""
        for positions in lengths:
            self.forward(positions)
        if fail:
            raise RuntimeError("planted")

    def generate_stream(self, *lengths):
        for positions in lengths:
            self.forward(positions)
            yield positions


class Wrapper(Machine):
    def __init__(self, inner):
        self.inner, self.input_point = inner, inner.input_point

    def generate(self, *lengths):
        self.forward(lengths[0])
        self.inner.generate(*lengths[1:])


@pytest.fixture
def machine():
    return Machine()


def followed(machines, run):
    """What every forward was said to begin generating at."""
    found = []
    with following(machines, machines[0].input_point) as progress:
        machines[0].input_point.add_hook(lambda values, hook: found.append(progress.first_generated))
        run()
    machines[0].input_point.remove_hooks()
    return found


def test_a_forward_outside_generate_is_all_prompt(machine):
    assert followed([machine], lambda: [machine.forward(length) for length in (5, 1, 7)]) == [5, 1, 7]


def test_with_a_cache_only_the_first_forward_is_prompt(machine):
    assert followed([machine], lambda: machine.generate(5, 1, 1)) == [5, 0, 0]
    assert followed([machine], lambda: machine.generate(1, 1, 1)) == [1, 0, 0]


def test_without_a_cache_every_forward_begins_with_the_prompt(machine):
    assert followed([machine], lambda: machine.generate(5, 6, 7)) == [5, 5, 5]
    assert followed([machine], lambda: machine.generate(1, 2, 3)) == [1, 1, 1]


def test_each_generate_and_what_follows_it_begins_anew(machine):
    def run():
        machine.generate(5, 1)
        machine.forward(3)
        machine.generate(2, 3)

    assert followed([machine], run) == [5, 0, 3, 2, 2]


def test_a_generate_called_by_another_is_part_of_it(machine):
    outer = Wrapper(machine)
    assert followed([outer, machine], lambda: outer.generate(5, 1, 1)) == [5, 0, 0]


def test_after_a_failed_generate_forwards_are_all_prompt_again(machine):
    def run():
        with pytest.raises(RuntimeError, match="planted"):
            machine.generate(5, 1, fail=True)
        machine.forward(4)

    assert followed([machine], run) == [5, 0, 4]


def test_streams_each_remember_their_prompt_and_leave_other_forwards_alone(machine):
    def run():
        first, second = machine.generate_stream(5, 1, 1), machine.generate_stream(2, 3)
        next(first), machine.forward(7), next(second), next(first), machine.forward(1)
        assert list(second) == [3]
        assert list(first) == [1]

    assert followed([machine], run) == [5, 7, 2, 0, 1, 2, 0]


def test_afterwards_generate_is_the_class_own_or_the_one_the_user_put_there(machine):
    followed([machine], lambda: None)
    assert set(vars(machine)) == {"input_point"}
    own = vars(machine)["generate"] = lambda: None
    outer, inner = (following([machine], machine.input_point) for _ in range(2))
    with pytest.raises(TypeError), outer, inner:
        machine.generate("no argument is taken")
    assert machine.generate is own
    assert not machine.input_point.fwd_hooks


def test_a_followed_generate_still_says_what_it_does(machine):
    with following([machine], machine.input_point):
        assert machine.generate.__doc__ == "Run forwards of these lengths."


def test_models_that_generate_are_followed(some):
    view, found = some.view, []
    with (
        torch.no_grad(),
        view.following() as progress,
        view.reading({"pre": lambda layer, values: found.append((progress.first_generated, values.shape[1]))}),
    ):
        view.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False, verbose=False)
    assert found[:: view.n_layers] == [(3, 3), (0, 1), (0, 1)]
