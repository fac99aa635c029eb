from .ablation import Ablation as Ablation
from .comparison import Comparison as Comparison
from .polysemanticity import Polysemanticity as Polysemanticity
from .profiles import Profiles as Profiles
from .reading import decompose as decompose
from .screening import Screen as Screen
from .texts import LabelledTexts as LabelledTexts
from .validity import rerun as rerun
