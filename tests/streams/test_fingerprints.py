"""A seed means the same stream on every platform and in every version: recorded fingerprints of every stream.

If a test here fails, results that were recorded earlier cannot be repeated any more. Whoever means a stream to become
another one raises the version in its definition and records anew: ``python -m tests.streams.test_fingerprints NAME
OPTIONS`` prints an entry, with OPTIONS as a Python dictionary.
"""

import ast
import hashlib
import sys
from typing import Any

import numpy as np
import pytest

from continual_metaopt.streams import STREAMS, plan_stream
from continual_metaopt.streams.plan import random_state
from continual_metaopt.streams.stream import Stream
from tests.streams.synthetic import coded_arrays

# 12 classes, 48 training and 12 test images. The second source has colours, and classes of different sizes.
X, Y, X_TEST, Y_TEST = coded_arrays()
SOURCES: dict[str, Any] = {
    "tiny": (X, Y, X_TEST, Y_TEST),
    "tiny colours": (np.stack([X, 255 - X, X ^ 1], axis=-1), np.repeat(np.arange(6), [4, 6, 8, 8, 10, 12])),
    "digits": "digits",
}
N_PRESENTED = 4  # samples of each experience whose values are recorded

# name → (options, fingerprint, hash of the first values that are presented)
Entry = tuple[dict[str, Any], str, str]
RECORDED: dict[str, list[Entry]] = {
    "class_split": [
        ({"source": "tiny", "classes_per_experience": 3}, "9401573a477b9856dc82a14c62275707", "142f13c3486e0108"),
        (
            {"source": "tiny", "classes_per_experience": 3, "seed": 1},
            "22056eed5105d51cef738dc5ba0187bd",
            "d6671cf8f527cf2c",
        ),
        (
            {"source": "tiny", "classes_per_experience": 3, "seed": 4294967295, "labels": "global"},
            "f80eb62552f6a37424f7d6ab00756b55",
            "af3d5190f5f73256",
        ),
        (
            {"source": "tiny", "classes_per_experience": 4, "n_experiences": 2, "samples_per_experience": 7},
            "3c65b2054b966beb394d1d660d2a8213",
            "95192804c7635b7e",
        ),
        (
            {"source": "tiny", "classes_per_experience": 3, "stationary": "shuffled"},
            "af7056797ffe0d29b009604df816c636",
            "123f973810ebf970",
        ),
        (
            {"source": "tiny", "classes_per_experience": 3, "stationary": "repeat"},
            "bc2632829c274f1f2e021b4306f99610",
            "628ee61f4876713c",
        ),
        (
            {"source": "tiny", "classes_per_experience": 3, "stationary": "frozen", "frozen_after": 1},
            "9be32eab267f458ea89b849eac90d432",
            "4b3a99bc58f2ba92",
        ),
        (
            {"source": "tiny", "classes_per_experience": 3, "transition_width": 6},
            "2dde1249baa389b65e647ea95104bf43",
            "7054871fba81d02f",
        ),
        (
            {"source": "tiny colours", "classes_per_experience": 2, "seed": 5},
            "f975f52f40e8e4824c815f9223bb6f15",
            "a5a6b5a70ca6a20d",
        ),
        ({"source": "digits", "classes_per_experience": 2}, "573b08853f35d187d765231218a0b15e", "0bbbb42a87217e17"),
        (
            {
                "source": "tiny",
                "classes_per_experience": 3,
                "replacement": True,
                "n_experiences": 6,
                "samples_per_experience": 9,
            },
            "b52ecb8a9080d57f74a90182c20df70b",
            "f723f7a5a8b6f826",
        ),
        (
            {"source": "tiny", "classes_per_experience": 3, "labels": "appearance"},
            "3e771616aa3841896b3e2df733be34b1",
            "37e9aa97446086fd",
        ),
    ],
    "hard_and_easy": [
        ({"source": "digits"}, "277007bea81554d4fe12976cce1fccfb", "24d2f5679f47dbf6"),
        ({"source": "digits", "seed": 1}, "2181ba8951b2dd1833c13eef745c5212", "d2467efa0e61f1c8"),
        ({"source": "digits", "stationary": "frozen"}, "5f4dcc0f70bbaf1ad1d0e54abc3501d9", "f73355403caeb66e"),
    ],
    "recurring": [
        ({"source": "tiny", "classes_per_experience": 3}, "d81600904d2794f88d22b233a0db0fbb", "a5c814523018f462"),
        (
            {"source": "tiny", "classes_per_experience": 3, "seed": 1},
            "9e89499f54327b45ad543ba2d4e83c8e",
            "5cf081a22a3eca8a",
        ),
        (
            {"source": "tiny", "classes_per_experience": 3, "stationary": "frozen", "frozen_after": 2},
            "c724b189b24b8893ff6c62b63702950c",
            "99c2c21e68a623cb",
        ),
        ({"source": "digits"}, "0ed2d67308fb35359092bae4a95b46f8", "254a1f554f72007a"),
    ],
    "permuted_inputs": [
        ({"source": "tiny", "n_experiences": 3}, "d1632769c235c2225f91ad768dd0d2fa", "785450db658e78c5"),
        ({"source": "tiny", "n_experiences": 3, "seed": 1}, "d60457d27182f4846012e5fe851de610", "5b7f1977f50bfbd8"),
        (
            {"source": "tiny", "n_experiences": 2, "samples_per_experience": 7},
            "265ec546ef950ca9791b63d99a508901",
            "68e7f9c89582e443",
        ),
        (
            {"source": "tiny", "n_experiences": 3, "stationary": "shuffled"},
            "68781a3fb003e661e5ddda17739ede3d",
            "3ad252380182cda6",
        ),
        (
            {"source": "tiny", "n_experiences": 3, "stationary": "repeat"},
            "d8a42e70046951e1e7a737c601e35f21",
            "87e682c3ce69faad",
        ),
        (
            {"source": "tiny", "n_experiences": 3, "stationary": "frozen", "frozen_after": 1},
            "b6d1b957f8a30296e541d10c215038e4",
            "64390b7acd81f1f4",
        ),
        (
            {"source": "tiny", "n_experiences": 3, "transition_width": 30},
            "b077431c5e408e6155c8829ca0227ca5",
            "6a3f54dce020269d",
        ),
        ({"source": "tiny colours", "n_experiences": 2}, "859de4570f6092e19661bb179868d0e0", "673ca364efd0e186"),
        ({"source": "digits"}, "505a7e2b0ac74f89096675cde1268d24", "072e09d0fd9580ae"),
    ],
    "permuted_labels": [
        (
            {"source": "tiny", "n_experiences": 3, "samples_per_experience": 60},
            "f9dc0bd2a3d4e20e96dbe832e610a482",
            "7c6e588da951aba7",
        ),
        (
            {"source": "tiny", "n_experiences": 3, "samples_per_experience": None, "seed": 1},
            "9d269aa536ec5d903b2dbd2ce4def627",
            "f65888279bd4a129",
        ),
        (
            {
                "source": "tiny",
                "n_experiences": 3,
                "samples_per_experience": 20,
                "stationary": "frozen",
                "frozen_after": 1,
            },
            "62ea7afd1c8bce02590768742e7fd510",
            "4ff364ba1af11d73",
        ),
        ({"source": "digits"}, "8a5ee25da47b0035f1735fdb846609b8", "1bcbf26ac020678e"),
    ],
    "label_noise": [
        ({"source": "tiny", "n_experiences": 3}, "30240b08c30b1949ae8d7fb544805778", "562c0936cb4e12c8"),
        (
            {"source": "tiny", "n_experiences": 3, "seed": 1, "schedule": "alternating"},
            "ac4f9b76a6ed66cf52af9e94434edd6d",
            "4e4d05d60d1f69ab",
        ),
        (
            {"source": "tiny", "n_experiences": 3, "schedule": "fixed", "samples_per_experience": 100},
            "5b912534d4221883db87317917497d5a",
            "0529d810517f9766",
        ),
        (
            {"source": "tiny", "n_experiences": 3, "stationary": "repeat"},
            "3fcc05f37987c34583b20514b0b50b4e",
            "dbb5252592e1d18a",
        ),
        ({"source": "digits"}, "348d3ed299e27c84b94f98ef5ab5d761", "9aa442cf4873c834"),
    ],
    "drifting_rotation": [
        ({"source": "tiny", "n_experiences": 3}, "5dd5de10b98dd8b416596cb5c81ab9c1", "e9d22f39f2eab96a"),
        (
            {"source": "tiny", "n_experiences": 3, "seed": 1, "degrees": -30.0},
            "d8f6ec9b46f06cd9573e852c6c29e517",
            "614c2ec7d7319443",
        ),
        (
            {"source": "tiny colours", "n_experiences": 3, "transition_width": 20},
            "1330dcd9dee8cc7edc73ca9c1fd5717a",
            "7c68ebbb399c4a59",
        ),
        ({"source": "digits"}, "0880972073106306b12c215032bc3744", "b9fc470f6124d676"),
    ],
    "drifting_brightness": [
        ({"source": "tiny", "n_experiences": 3}, "8ee5e9e4189c072102eff10e568cbe6f", "558f0438b129511e"),
        (
            {"source": "tiny", "n_experiences": 3, "seed": 1, "factor": 3.0},
            "0873e2ef2bcfd8feac14bc2c3c94fb7b",
            "42bf2bd47c72dc62",
        ),
        ({"source": "tiny colours", "n_experiences": 3}, "2dd71bef61333c2012a35ebe35a5c357", "28db0b72ca3b9d4b"),
        ({"source": "digits"}, "cac5d6634f70a650b6154f62b1d3990c", "5e4a57560c3d2507"),
    ],
    "drifting_noise": [
        ({"source": "tiny", "n_experiences": 3}, "8dcd10d380a39db276fcba3a53960394", "5c0b748a2485e1e0"),
        ({"source": "tiny", "n_experiences": 3, "seed": 1}, "ea5572a1f0f103ae84cddf2b27255f84", "1bcc3f45f18790ef"),
        (
            {"source": "tiny colours", "n_experiences": 3, "stationary": "frozen", "frozen_after": 1},
            "ee6e1094f27b781a7f84a8ee9eceeb9d",
            "3e22e635fcdef9af",
        ),
        ({"source": "digits"}, "45f51bea13675d652b81e0cf831ed6ae", "b6f54f30a2c3e16e"),
    ],
    "multi_epoch": [
        ({"source": "tiny", "batch_size": 8, "epochs": 2}, "f1a7697053ce0e75333d00747f31f585", "8c360d53d62a748f"),
        (
            {"source": "tiny", "batch_size": 8, "epochs": 2, "seed": 1},
            "60a4642ff3e3a47dc04a9a58c16e4e1f",
            "439d07180226fdc9",
        ),
        (
            {"source": "tiny colours", "batch_size": 4, "epochs": 3},
            "f60023f2f603c04eb042f3d2066750e7",
            "edd30213bd970dd6",
        ),
        ({"source": "digits"}, "a89fb5814f99c77b12820238e93d5927", "f743435276419016"),
    ],
    "tracking": [
        ({"n_samples": 100}, "f4944d46821a0b1e72b770c19dd94871", "d0d694e88902dccc"),
        ({"n_samples": 100, "seed": 1}, "c72897e778455b23c14206d5a7d6a378", "d9e5ddc319f67a61"),
        ({"n_samples": 100, "noise": 0.5}, "73a665a90f555973feb003c06a55729e", "0a99bd985dd66c15"),
        (
            {"n_samples": 100, "n_inputs": 3, "n_relevant": 2, "flip_every": 9, "samples_per_experience": 40},
            "2092add9f89c4db9c5e8acbb58ec3840",
            "8351ed465ea002c0",
        ),
        ({}, "4b099c611888bf99fc27f0f47b3ead67", "25dd206e66f67bc8"),
        (
            {"n_samples": 100, "samples_per_experience": 30, "stationary": "frozen", "frozen_after": 1},
            "0c26202c38a9cfb7460032e9cd5a0f97",
            "67b5724e7f11a01e",
        ),
    ],
    "bit_flipping": [
        ({"n_samples": 200, "flip_every": 40}, "30923efd7cf99e838d645d67a7434269", "cad14630e21f2191"),
        ({"n_samples": 200, "flip_every": 40, "seed": 1}, "9f9f7dff25db764a1b2afa108a808ea4", "ae45c7be2740aeed"),
        (
            {"n_samples": 200, "flip_every": 40, "stationary": "shuffled"},
            "8095b635e3c1a5bec189f8b98312042a",
            "ec3bb57959942b24",
        ),
        (
            {"n_samples": 200, "flip_every": 40, "stationary": "frozen", "frozen_after": 2},
            "ad8019e9c5f30c35c3a283c1d5e46266",
            "8946b536889804d8",
        ),
        (
            {"n_samples": 100, "n_inputs": 5, "n_slow": 2, "flip_every": 9, "n_target_units": 3, "agreement": 0.5},
            "854aaa4f45a9ab184b642b1f0ddc797f",
            "ed4232ecbf6e23cb",
        ),
    ],
}

NAMES = STREAMS.own


def planned(name: str, options: dict[str, Any]) -> Stream:
    known = {"source": SOURCES[options["source"]]} if "source" in options else {}
    return plan_stream(name, **{**options, **known})


def presented(stream: Stream) -> str:
    """Hash of the first inputs and targets of every experience, learned from and held out."""
    digest = hashlib.sha256()
    for samples in (*stream.train, *stream.test):
        inputs, targets = samples.batch(slice(0, min(N_PRESENTED, len(samples))))
        digest.update(f"{inputs.shape} {targets.shape}".encode())
        digest.update(inputs.astype("<f4").tobytes())
        digest.update(targets.astype("<i8" if targets.dtype.kind == "i" else "<f4").tobytes())
    return digest.hexdigest()[:16]


def entry(name: str, options: dict[str, Any]) -> Entry:
    stream = planned(name, options)
    return options, stream.info.fingerprint, presented(stream)


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_is_recorded(name: str) -> None:
    assert len(RECORDED.get(name, [])) >= 2, (
        f"'{name}' needs entries in RECORDED in {__file__}, for several options, seeds and sources. Print one with: "
        f"""python -m tests.streams.test_fingerprints {name} '{{"source": "tiny", "seed": 1}}'"""
    )
    seeds = {options.get("seed", 0) for options, *_ in RECORDED[name]}
    assert len(seeds) > 1, f"'{name}' needs entries for more than one seed"


def test_nothing_is_recorded_of_streams_that_are_gone() -> None:
    assert set(RECORDED) <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "recorded"),
    [pytest.param(name, row, id=f"{name} {row[0]}") for name, entries in RECORDED.items() for row in entries],
)
def test_a_seed_goes_on_meaning_the_same_stream(name: str, recorded: Entry) -> None:
    assert entry(name, recorded[0]) == recorded


@pytest.mark.parametrize("name", RECORDED)
def test_other_options_give_other_fingerprints(name: str) -> None:
    fingerprints = [fingerprint for _, fingerprint, _ in RECORDED[name]]
    assert len(set(fingerprints)) == len(fingerprints)


def test_the_generator_gives_the_same_numbers() -> None:
    """On the same platform a failure here means that NumPy has changed; elsewhere, that it differs there."""
    assert random_state(0, 1, 2).permutation(10).tolist() == [6, 1, 0, 2, 4, 8, 5, 3, 9, 7]
    assert random_state(2**32 - 1, 1).permutation(np.arange(3, 11)).tolist() == [9, 8, 7, 5, 4, 6, 10, 3]
    assert random_state(0, 1, 2).randint(1000, size=6, dtype=np.int64).tolist() == [519, 759, 443, 325, 307, 327]
    assert [draw.hex() for draw in random_state(0, 1, 2).random_sample(3)] == [
        "0x1.ae3bd08a7642cp-3",
        "0x1.423666867c18ap-2",
        "0x1.ab271238aaaa8p-4",
    ]
    assert random_state(0, 1, 2).standard_normal(3).astype(np.float32).tolist() == [
        -0.6584917306900024,
        -1.0300737619400024,
        -0.03867914155125618,
    ]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_size_of_integers_decides_nothing(dtype: Any) -> None:
    """It differs between platforms where it is not given."""
    wide = random_state(0, 1, 2)
    other = random_state(0, 1, 2)
    assert other.permutation(np.arange(50, dtype=dtype)).tolist() == wide.permutation(np.arange(50)).tolist()
    assert other.randint(7, size=50, dtype=dtype).tolist() == wide.randint(7, size=50, dtype=np.int64).tolist()


if __name__ == "__main__":
    print(entry(sys.argv[1], ast.literal_eval(sys.argv[2])))
