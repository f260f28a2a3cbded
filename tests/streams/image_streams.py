"""All streams of images, each with options that fit tiny synthetic images, and recorded fingerprints.

A new stream, or a new option of one, is a new line of ``IMAGE_STREAMS``; the tests in ``test_image_streams`` then hold
for it. ``print_fingerprints()`` prints what is to be recorded.
"""

from typing import Any, NamedTuple

from streams import plan_stream
from streams.stream import Stream
from tests.streams.synthetic import coded_arrays

SOURCE = coded_arrays()  # 12 classes, 48 training images and 12 test images
VARIANTS: dict[str, dict[str, Any]] = {
    "changing": {},
    "shuffled": {"stationary": "shuffled"},
    "repeat": {"stationary": "repeat"},
    "frozen": {"stationary": "frozen", "frozen_after": 1},
    "gradual": {"transition_width": 6},
}


class Case(NamedTuple):
    """A stream with options.

    Attributes:
        name: of the stream.
        options: its own options; every experience must have at least 7 samples, and there must be at least 3.
        version: of its definition.
        redraws_labels: whether an image is given another label when it comes again without a change.
    """

    name: str
    options: dict[str, Any]
    version: int = 1
    redraws_labels: bool = False


IMAGE_STREAMS = {
    "class_split": Case("class_split", {"classes_per_experience": 3}),
    "class_split, global": Case("class_split", {"classes_per_experience": 3, "labels": "global"}),
    "class_split, growing": Case("class_split", {"classes_per_experience": 4, "labels": "appearance"}),
    "class_split, part": Case("class_split", {"classes_per_experience": 3, "samples_per_experience": 7}),
    "class_split, replacement": Case(
        "class_split", {"classes_per_experience": 4, "replacement": True, "n_experiences": 5}
    ),
    "drifting_rotation": Case("drifting_rotation", {"n_experiences": 4, "degrees": 270}),
    "drifting_brightness": Case("drifting_brightness", {"n_experiences": 4, "samples_per_experience": 20}),
    "hard_and_easy": Case("hard_and_easy", {"hard_classes": 3, "hard_samples": 30}),
    "hard_and_easy, 10 passes": Case("hard_and_easy", {"easy_samples": 9}),
    "label_noise": Case("label_noise", {"n_experiences": 4}, redraws_labels=True),
    "label_noise, alternating": Case(
        "label_noise",
        {"n_experiences": 4, "schedule": "alternating", "samples_per_experience": 60, "wrong": 0.7},
        redraws_labels=True,
    ),
    "label_noise, fixed": Case(
        "label_noise", {"n_experiences": 3, "schedule": "fixed", "samples_per_experience": 20}, redraws_labels=True
    ),
    "permuted_inputs": Case("permuted_inputs", {"n_experiences": 4}),
    "permuted_inputs, part": Case("permuted_inputs", {"n_experiences": 4, "samples_per_experience": 7}),
    "permuted_inputs, recurring": Case("permuted_inputs", {"n_experiences": 5, "n_permutations": 2}),
    "permuted_inputs, continued": Case(
        "permuted_inputs", {"n_experiences": 4, "samples_per_experience": 30, "continued": True}
    ),
    "permuted_labels": Case("permuted_labels", {"n_experiences": 4, "samples_per_experience": 20}),
    "permuted_labels, passes": Case("permuted_labels", {"n_experiences": 3, "samples_per_experience": 100}),
    "recurring": Case("recurring", {"classes_per_experience": 4, "n_cycles": 2}),
    "recurring, new order": Case(
        "recurring",
        {
            "classes_per_experience": 3,
            "n_tasks": 3,
            "n_cycles": 3,
            "new_order": True,
            "labels": "appearance",
            "samples_per_experience": 10,
        },
    ),
}

# With seed 0, in the order of VARIANTS. A changed fingerprint means that a seed no longer gives the stream that it gave
# when results were recorded: then the version of the definition has to be raised.
FINGERPRINTS: dict[str, list[str]] = {
    "class_split": [
        "9401573a477b9856dc82a14c62275707",
        "af7056797ffe0d29b009604df816c636",
        "bc2632829c274f1f2e021b4306f99610",
        "9be32eab267f458ea89b849eac90d432",
        "2dde1249baa389b65e647ea95104bf43",
    ],
    "class_split, global": [
        "154fd232489c7ff809e6175a859a92b8",
        "0b66418d19b69e96727adb5da51f02c0",
        "ab6dedfe4c523dfa1d267898120ff164",
        "f6084fb89e7fb0cde14b2c87aac81a26",
        "6b610d3ca74c45c2b61fee8fa64ce468",
    ],
    "class_split, growing": [
        "6935d3996bd172ae88d8f86036138bd8",
        "493717f6abe08431180e3b862e695902",
        "d14917ae5a7a19e856d969c58aed67df",
        "5d3a5f3c8076427d53ebe1a56e630f32",
        "1eab1614780b18f7f5491fbbcbf1fe5a",
    ],
    "class_split, part": [
        "664a92d8cfd346abce76957d34b8506b",
        "3ce6287e848b37df4d03b4549ca624a5",
        "113fa0f33e266c5db354a7b7a7335ca1",
        "534bf373e25250f878ea3e953f5d072c",
        "11680b6f400aeaae96755c5c1d0c72b8",
    ],
    "class_split, replacement": [
        "605cb110c7f99912a16b4bb71f1f5352",
        "4d95386306047a1c0d2135ef2dccf4de",
        "be89892f9ee1246f057f5b36edd54724",
        "9c37c7940e99a5c0dea5dded34bee6a0",
        "b169026d842ef7cdc969a8c9e197641a",
    ],
    "drifting_rotation": [
        "abd15e7d570012c9b9327fdac25fbd63",
        "ca0a0b26f46b3914a7806228ad9ef40f",
        "07c44fb9f56a56016f7073dd9c6faaf9",
        "24609ec37b0a8604767c23bfc94a288c",
        "95cc10a58a60997f5996c1af9f8fafd6",
    ],
    "drifting_brightness": [
        "d66fb215bb8368a4e310d770b281187c",
        "d2fd4e3a91e0ccd350c64d9b6fc1c3b9",
        "b2e0d525d954fc886432c0e0837a0c2e",
        "8a20bada4842deec689c7e8fad6272cb",
        "c3262f744704d5170d7bde65883ae588",
    ],
    "hard_and_easy": [
        "cbcee8ad3eecd45fe361122ed66dc4e5",
        "1d14a9451949bb5d4a2933bafc44d3d7",
        "85d019d0bba036577fdcaab2f1150210",
        "e8f04026c39b653aa62a6917c2590804",
        "fdccd2593ef0135321851a1278466203",
    ],
    "hard_and_easy, 10 passes": [
        "489b60a50c820e9bf0a99200055b98f2",
        "fc5dc4eeec35a4f30bca72e04b64095a",
        "e640f970c136f14efb24fdaf427a5082",
        "efe235ee88644ee3e94046f052e49b7f",
        "c75b8d615f69a04d7ac8035a49ebe41a",
    ],
    "label_noise": [
        "09d8e685aa05a1f7cea19610b9dde19b",
        "dd38764077ac25d77560dfe9703231b3",
        "6f5a7f2f0c436d5154289a12b8b392c8",
        "236f5d128ed7ae854152edb6709a152b",
        "b733c07e904c1c909208b0d42fe55ce6",
    ],
    "label_noise, alternating": [
        "476388d972ce03e7c38ca71bf79d6841",
        "ee1a543943df6d1c7587e50d2a6fb0d4",
        "b786550985d23fd3b9e57b0a08022a6f",
        "6706ba1011f04abd8b8d5278eaba1010",
        "386e7b532f43dfd53f70979a70e7df6b",
    ],
    "label_noise, fixed": [
        "a80f4505f8d99bfab13d7a60e0f0ea0e",
        "4ee8d4a81dbdf65af50629540e36ae93",
        "eede96ebcb9aeb385d0d3226fcf96b43",
        "1bc94f093220013b6ceef0b73855df6e",
        "90e91d2fcd72a1ade52d08d68e7c678e",
    ],
    "permuted_inputs": [
        "bd73a41753f02030cf69908f49431f46",
        "ece1d80452ce52be2aa24a2bef511bd6",
        "04bd0611cc58e2bc0e6c3c9b13883c82",
        "8eb1a517eb186bd40973ac20c5a8ea83",
        "5405559f384d424a3f2ce46384bdb753",
    ],
    "permuted_inputs, part": [
        "bdd2ada06e67b27f786e70e4de8d0160",
        "bc6cc2046f01298e44d3cf778b6101d2",
        "a1fa3c967b3851915593a37a4e4eba4f",
        "02c7267088e9a5ad72f1c0836e25ddc2",
        "70e20a605c914b9cdf3f240b35369648",
    ],
    "permuted_inputs, recurring": [
        "ae9a694aeb66c27c9a212a61db1eba9c",
        "9d01714eee4f681f4c1131b6b76d9ce7",
        "f53a9101627ae47d4f7a51448546dd57",
        "e173bfd7f64cc95f86120b6bf296f1aa",
        "5619d4d9cb0dbdf3fe33e9b05a2dbd0b",
    ],
    "permuted_inputs, continued": [
        "48bb023b1bf5fe8fb1e31c65cce87446",
        "6f89013b069e3c333678b05b09215e91",
        "995ac8ca61c581830842509d1e18ef12",
        "6d44f48e07b84bccc7e87cda1f1b6e56",
        "722d06020fd335135b935cb760d67414",
    ],
    "permuted_labels": [
        "5f61c98099e6a5b4109488ad7209ba90",
        "a6358d6743612de785bfaa37b598121c",
        "8c185e3d7aeef1c0e5ccf97891eb574d",
        "3500562a7bbd93ec8b40bb2db94370ea",
        "309081597b1b3c03f6bafe0d098b156f",
    ],
    "permuted_labels, passes": [
        "2fea21fb24f4345d3a410826a4f19290",
        "62ebacda6a36c83db9e8c138467da27f",
        "eadb0a18842826dcc10625ac94a4e025",
        "4b285f9e67d435cd7479bb0b594f5f8e",
        "0a1c8030b65df7a88ed9b1888af81851",
    ],
    "recurring": [
        "3d05cee18409644961fdfb0d30a64ed0",
        "9ec0312c73ffb29926b8c8be2aaa1dc5",
        "80983d0aae1b88d9b00dc2b5319da87b",
        "e1119c0a914be1d475fd675785c1dada",
        "27e6bebd512d6d914a9da50556d433d8",
    ],
    "recurring, new order": [
        "88e2f16810e4b702678fb67ae3b419a7",
        "df3e134ebe940e88059a07ecf335b57b",
        "208eacbd6a4ee1af4d7b5e2ac49bc8bc",
        "bbb4939d2f3087c48b023c581d503dcb",
        "ece6d8b7dc936ee6b43b65c7fda291fd",
    ],
}


def planned(case: str, **options: Any) -> Stream:
    """The stream of a case."""
    return plan_stream(IMAGE_STREAMS[case].name, **{"source": SOURCE, **IMAGE_STREAMS[case].options, **options})


def print_fingerprints() -> None:
    """Print the fingerprints of all cases."""
    for case in IMAGE_STREAMS:
        print(f'    "{case}": [')
        for options in VARIANTS.values():
            print(f'        "{planned(case, **options).info.fingerprint}",')
        print("    ],")


if __name__ == "__main__":
    print_fingerprints()
