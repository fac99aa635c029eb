from .dosing import at_dose_of as at_dose_of
from .dosing import dose as dose
from .dosing import equal_dose as equal_dose
from .results import Evaluation as Evaluation
from .results import Factorial as Factorial
from .sweeping import Dose as Dose
from .sweeping import deactivation_doses as deactivation_doses
