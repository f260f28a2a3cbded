"""Short for ``continual_metaopt.analysis``."""

from continual_metaopt.streams.short_names import give_short_name

give_short_name("analysis")
