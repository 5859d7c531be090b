"""From a configuration to a directory: the loop, what is kept of it, and how it goes on."""

import lazy_loader

# The names stand in the stub beside this file, once; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
