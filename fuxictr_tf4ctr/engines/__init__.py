"""Engines that take the place of parts of the core, which never imports them."""
