"""The model families that are known: importing this registers them. A new one is a file here and its name in the line below."""

from . import anima as anima
from . import flux as flux
from . import flux2 as flux2
from . import krea2 as krea2
from . import mmdit as mmdit
from . import nextdit as nextdit
from . import qwen as qwen
from . import sd as sd
