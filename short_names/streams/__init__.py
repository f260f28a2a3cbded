"""Short for ``continual_metaopt.streams``."""

from continual_metaopt.streams.short_names import give_short_name

give_short_name("streams")
