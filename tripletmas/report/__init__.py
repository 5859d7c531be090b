"""Reports: tables, plots and HTML pages, rebuilt from run directories alone.

A page is one file with everything in it: it can be mailed. The plots lie beside it as PNG.
"""

import lazy_loader

# The names stand in the stub beside this file, once; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
