"""The commands. They take what was parsed, call, and print; what is done is done elsewhere."""

from exhume.commands.find_start import FindStart as FindStart
from exhume.commands.lists import ImportArgs as ImportArgs
from exhume.commands.lists import Presets as Presets
from exhume.commands.lists import Problems as Problems
from exhume.commands.lists import Zoo as Zoo
from exhume.commands.run import Demo as Demo
from exhume.commands.run import Reconstruct as Reconstruct
from exhume.commands.run import Report as Report
from exhume.commands.run import Score as Score
from exhume.commands.run import Search as Search
from exhume.commands.run import Train as Train
