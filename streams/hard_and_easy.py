"""Hard and easy experiences in turn: the "5+1" task of L2 Init.

Kumar, Marklund and Van Roy, "Maintaining Plasticity in Continual Learning via Regenerative Regularization",
arXiv 2308.11958, §4.2, and its code, github.com/skumar9876/L2_Init.
"""

from itertools import accumulate, cycle, pairwise, takewhile

from continual_metaopt.streams.class_groups import Labels, chosen_classes, members, plan_classes
from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.options import require_at_least_one, require_between
from continual_metaopt.streams.plan import CLASS_ORDER, SAMPLE_ORDER, in_passes, random_state
from continual_metaopt.streams.stream import ImagePlan, image_stream

PASSES = 10  # over the images of a hard experience, in the paper


@image_stream(
    "hard_and_easy v1",
    changes="the classes: many in hard experiences, few in easy ones, in turn",
    when="with every experience",
    length="n_experiences × hard_samples or easy_samples",
    head="one output per class of the source (labels global), growing (appearance), or shared (within)",
)
def hard_and_easy(
    images: ImageSource,
    seed: int,
    *,
    hard_classes: int = 5,
    easy_classes: int = 1,
    hard_samples: int | None = None,
    easy_samples: int | None = None,
    classes: list[int] | None = None,
    labels: Labels = "global",
    n_experiences: int | None = None,
) -> ImagePlan:
    """Experiences of many classes and of few take turns, beginning with many; no class comes in two of them.

    An experience of one class is learned at once, since all its labels are the same, and what it does to the network
    shows in the hard experience that follows: that is where methods are compared.

    In the paper, an experience of CIFAR-100 lasts 780 steps with batches of 32, which is 10 passes over the 2,500
    images of 5 classes, and the easy ones last as long. Its published code has 625 steps with batches of 16
    (``hard_samples=easy_samples=10_000``). The default is the paper's, with as many images as the source has.

    Args:
        seed: decides which classes go together and the order of samples.
        hard_classes: number of classes in the first, third, … experience.
        easy_classes: number of classes in the second, fourth, … experience.
        hard_samples: number of samples in each hard experience, drawn in passes over its images, each in a new order;
            None for 10 passes.
        easy_samples: likewise in each easy experience; None for as many as in the hard experience before.
        classes: use only these classes of the source, by number; None for all.
        labels: "global" keeps the source's numbering, "appearance" numbers classes in the order in which they first
            come, "within" anew in each experience.
        n_experiences: use only this many experiences, the first ones; None for as many as there are classes for.

    Example:
        >>> [experience.classes for experience in hard_and_easy("digits").info.experiences]
        [[2, 3, 4, 6, 8], [0]]
    """
    sizes = {"hard_classes": hard_classes, "easy_classes": easy_classes}
    require_at_least_one(**sizes, hard_samples=hard_samples, easy_samples=easy_samples)
    chosen = random_state(seed, CLASS_ORDER).permutation(chosen_classes(classes, len(images.classes)))
    ends = takewhile(lambda end: end <= len(chosen), accumulate(cycle(sizes.values()), initial=0))
    groups = [chosen[start:end] for start, end in pairwise(ends)]
    if len(groups) < 2:
        raise ValueError(
            f"{hard_classes} classes for a hard experience and {easy_classes} for an easy one are more than there are: "
            f"{len(chosen)}"
        )
    require_between(1, len(groups), n_experiences=n_experiences)
    groups = groups[:n_experiences]
    train, n_hard = [], 0
    for i, group in enumerate(groups):
        available = members(images.train, group)
        if i % 2 == 0:
            n = n_hard = PASSES * len(available) if hard_samples is None else hard_samples
        else:
            n = n_hard if easy_samples is None else easy_samples
        train.append(in_passes(available, n, random_state(seed, SAMPLE_ORDER, i)))
    return plan_classes(images, groups, train, labels, seed)
