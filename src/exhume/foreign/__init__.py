"""Networks that were trained elsewhere become checkpoints: files, programs, modules. No code of a file runs."""

from exhume.foreign.read import ForeignNetwork as ForeignNetwork
from exhume.foreign.read import layout_of as layout_of
from exhume.foreign.read import load_state_dict as load_state_dict
from exhume.foreign.read import read_network as read_network
