"""A gallery served: JSON, and a page, over an index or a store, with the model that embeds what is asked with."""

import lazy_loader

# The names stand in the stub beside this file, once; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
