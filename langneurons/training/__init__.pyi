from .finetuned import Finetuned as Finetuned
from .finetuned import load_updates as load_updates
from .transfer_table import Transfer as Transfer
