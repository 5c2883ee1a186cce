"""tmt looks every half minute whether an ssh master that it has started can be used; with this plugin, every second."""

from tmt.utils.wait import Waiting

Waiting.__init__.__defaults__ = (1.0, 1.0)  # tick, tick_increase
