"""The engine of servecert: scenario, records, run store, statistics, protocol clients and the command line."""

from harness.base.version import __version__

__all__ = ["__version__"]
