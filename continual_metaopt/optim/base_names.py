"""Base updates by name, without torch, so that options can be listed with the names that users have registered."""

from typing import Any

from continual_metaopt.streams.registry import Registry

BASE_UPDATES: Registry[Any] = Registry("base update")  # this package's join it when ``base_updates`` is imported

register_base_update = BASE_UPDATES.register
