from .finetuned import Finetuned as Finetuned
from .transfer_table import Transfer as Transfer
