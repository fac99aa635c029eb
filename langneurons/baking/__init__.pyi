from .baked import Baked as Baked
from .baked import bake as bake
