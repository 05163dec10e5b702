"""From trained weights to the start of training: the seed or state of PyTorch's generator, or a public start.

| the initial weights came from | found by |
|---|---|
| PyTorch's CPU generator (MT19937), the network the first thing drawn, or behind a known number of draws | all-seeds |
| the same with a seed that people use, behind up to 2^22 draws of any kind | likely-seeds, likely-seeds-anywhere |
| the same with any seed behind anything, where some 1,700 weights of a layer never moved | generator-state |
| a network that others have too | `among` |
| PyTorch's CUDA generator (Philox, 64 bits), NumPy, Keras, JAX; orthogonal or sparse initialisation | not supported |

Of PyTorch's initialisations it tells the default of Linear and Conv, Xavier and Kaiming, uniform and normal, and plain
normal ones; a second initialisation over the first; float32, and float64 if it is asked for. generator-state needs
uniform ones in float32, and weights that no decay has shrunk and no half precision has rounded.
"""

from exhume.attack.find_start.all_seeds import sweep_digest
from exhume.attack.find_start.attempt import StartSearch, Sweep
from exhume.attack.find_start.draws import DISTRIBUTIONS, INITIALISATIONS
from exhume.attack.find_start.evidence import Evidence, chance
from exhume.attack.find_start.layers import TrainedLayer, TrainedNetwork, trained_network
from exhume.attack.find_start.public_start import read_candidates, read_state
from exhume.attack.find_start.search import WAYS, SearchOutcome, Start, WayTried, find_start
from exhume.attack.find_start.stream import Stream

__all__ = [
    "DISTRIBUTIONS",
    "INITIALISATIONS",
    "WAYS",
    "Evidence",
    "SearchOutcome",
    "Start",
    "StartSearch",
    "Stream",
    "Sweep",
    "TrainedLayer",
    "TrainedNetwork",
    "WayTried",
    "chance",
    "find_start",
    "read_candidates",
    "read_state",
    "sweep_digest",
    "trained_network",
]
