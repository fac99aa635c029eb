from tests import shapes as shapes  # for --jaxtyping-packages, which imports no more than the first name of a checker
