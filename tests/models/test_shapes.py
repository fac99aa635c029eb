"""Shapes are checked where this room's tests run, in functions made inside functions too."""

import pytest
import torch
from beartype.roar import BeartypeException
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from langneurons.recording.distributions import quantile
from tests import shapes


def test_a_tensor_of_another_shape_than_annotated_is_refused(request):
    if not request.config.pluginmanager.hasplugin("jaxtyping"):
        pytest.skip("the check of shapes is off")
    with pytest.raises(TypeCheckError, match="high"):
        quantile([], torch.ones(2), torch.ones(3), 0.5)


def test_a_signature_is_read_once_however_often_its_function_is_made():
    def stub(annotation):
        def made(values):
            pass

        made.__annotations__ = {"values": annotation}
        return made

    first = shapes.check(stub(Float[Tensor, "row column"]))
    assert shapes.check(stub(Float[Tensor, "row column"])) is first
    with pytest.raises(BeartypeException):
        first(torch.ones(2))
    assert shapes.check(stub(Float[Tensor, " row"])) is not first
