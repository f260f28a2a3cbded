"""The cache of decoded images: what is kept, when it is used, and that it never stands in the way."""

import itertools
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import platformdirs
import pyarrow.parquet as pq
import pytest
import torch

from continual_metaopt.streams import decoded_images, make_stream, sources
from continual_metaopt.streams.sources import load_source
from tests.streams.synthetic import coded_images, encode, write_folder, write_parquet
from tests.streams.test_sources import write_mnist

ROOT = Path(__file__).parents[2]
IMAGES = coded_images(range(20))
ENCODED = [encode(image) for image in IMAGES]
LABELS = np.arange(20) % 4
CLASSES = [("ant", "bee", "çow", "dog")[label] for label in LABELS]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; the folder of its entries."""
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded_images"


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """A cache that cannot be written: below a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path / "file" / "cache"))


@pytest.fixture
def decoded(monkeypatch):
    """Where each image came from that was decoded."""
    found = []
    decode = sources._decode
    monkeypatch.setattr(sources, "_decode", lambda where, *rest: found.append(where) or decode(where, *rest))
    return found


def load(spec, **options):
    """As a new process would, which remembers nothing."""
    sources._load_named.cache_clear()
    return load_source(spec, **options)


def parquet(tmp_path, name="train.parquet", images=ENCODED):
    return f"parquet:{write_parquet(tmp_path / 'images' / name, images, LABELS[: len(images)])}"


def entries(cache):
    return sorted(path for path in cache.iterdir() if path.is_dir())


def assert_equal(one, other):
    for name in ("name", "classes", "content_hash", "left_out"):
        assert getattr(one, name) == getattr(other, name)
    for split in ("train", "test"):
        for name in ("x", "y"):
            array, expected = getattr(getattr(one, split), name), getattr(getattr(other, split), name)
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)


def make_source(tmp_path, kind):
    if kind == "parquet":
        return parquet(tmp_path)
    if kind == "parquet with a test split":
        parquet(tmp_path, "test.parquet", ENCODED[:4])
        return parquet(tmp_path).removesuffix("/train.parquet")
    if kind == "folder":
        return f"folder:{write_folder(tmp_path / 'images', IMAGES, CLASSES)}"
    write_mnist(tmp_path / "images", "MNIST/raw", ("train", "t10k"))
    return "mnist"


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:decoded images cannot be kept")
@pytest.mark.parametrize("kind", ["parquet", "parquet with a test split", "folder", "torchvision"])
def test_files_are_decoded_once_and_the_images_are_the_same_without_the_cache(
    tmp_path, cache, request, monkeypatch, kind
):
    spec, options = make_source(tmp_path, kind), {"data_root": tmp_path / "images"}
    made = load(spec, **options)
    with monkeypatch.context() as patch:
        for name in ("_scan", "_torchvision_split"):
            patch.setattr(sources, name, None)  # not called again
        kept = load(spec, **options)
    assert kept is not made
    assert len(entries(cache)) == 1
    fingerprint = make_stream("permuted_inputs", source=spec, **options).info.fingerprint
    request.getfixturevalue("no_cache")
    without = load(spec, **options)
    assert not isinstance(without.train.x, np.memmap)
    assert_equal(made, without)
    assert_equal(kept, without)
    assert make_stream("permuted_inputs", source=spec, **options).info.fingerprint == fingerprint


def test_another_process_decodes_nothing_and_shares_the_memory(tmp_path, cache):
    spec = parquet(tmp_path)
    source = load(spec)
    code = (
        "import sys; from streams import sources; sources._decode = None\n"
        "x = sources.load_source(sys.argv[1]).train.x\n"
        "print(type(x).__name__, x.filename, x.tobytes().hex(), sep='\\n')"
    )
    found = subprocess.run([sys.executable, "-c", code, spec], cwd=ROOT, capture_output=True, text=True, check=True)
    (entry,) = entries(cache)
    assert found.stdout.splitlines() == ["memmap", str(entry / "train_x.npy"), source.train.x.tobytes().hex()]


def test_images_are_mapped_and_what_is_written_to_them_stays_in_the_process(tmp_path, cache):
    """In the process that decoded them, too."""
    spec = parquet(tmp_path)
    made, kept = load(spec), load(spec)
    for source, split in itertools.product((made, kept), ("train", "test")):
        x = getattr(source, split).x
        before = x.copy()
        assert isinstance(x, np.memmap)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # as of arrays that may not be written
            assert torch.equal(torch.from_numpy(x), torch.from_numpy(before))
        x[:] = 77
        np.testing.assert_array_equal(getattr(load(spec), split).x, before)


def test_an_empty_test_split(tmp_path, cache):
    spec = parquet(tmp_path, images=ENCODED[:4])  # one of each class, so that none can be held out
    for _ in range(2):
        assert load(spec).test.x.shape == (0, 2, 2, 1)
    assert len(make_stream("class_split", source=spec, classes_per_experience=4).test_stream[0].dataset) == 0


def test_unreadable_images_are_reported_by_every_process(tmp_path, cache, decoded):
    spec = parquet(tmp_path, images=[*ENCODED[:6], b"damaged"])
    with pytest.raises(ValueError, match=r"cannot read the image at train\.parquet, row 6"):
        load(spec)
    assert not entries(cache), "nothing to keep"
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out") as warned:
            source = load(spec, skip_unreadable=True)
        message = "1 unreadable images are left out, the first at train.parquet, row 6"
        assert [str(warning.message) for warning in warned] == source.left_out == [message]
    assert len(decoded) == 14
    with pytest.raises(ValueError, match="cannot read the image"):
        load(spec)


# --- which files they are --------------------------------------------------------------------------------------------


def change_content(file):
    """Of the same size, with the same times."""
    status = file.stat()
    file.write_bytes(encode(255 - IMAGES[0]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (len(ENCODED[0]), status.st_mtime_ns)


def swap_contents(file):
    """By renaming, which leaves times as they are on some file systems."""
    other = file.with_name("004.png")
    for path in (file, other):
        os.utime(path, ns=(0, 0))
    file.rename(file.with_name("kept"))
    other.rename(file)
    file.with_name("kept").rename(other)


CHANGES = {
    "content": change_content,
    "size": lambda file: file.write_bytes(encode(IMAGES[0], compress_level=0)),
    "name": lambda file: file.rename(file.with_name("999.png")),
    "class": lambda file: file.rename(file.parents[1] / "bee" / file.name),
    "one more": lambda file: shutil.copy2(file, file.with_name("999.png")),
    "one less": lambda file: file.unlink(),
    "swapped": swap_contents,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_decoded_anew(tmp_path, cache, decoded, change):
    folder = write_folder(tmp_path / "images", IMAGES, CLASSES)
    first = load(f"folder:{folder}")
    CHANGES[change](folder / "ant" / "000.png")
    decoded.clear()
    source = load(f"folder:{folder}")
    n = 20 + {"one more": 1, "one less": -1}.get(change, 0)
    assert len(decoded) == len(source.train.y) + len(source.test.y) == n
    assert len(entries(cache)) == (1 if change in ("content", "size", "swapped") else 2)
    if change != "name":
        assert source.content_hash != first.content_hash


def test_folders_that_change_places(tmp_path, cache, monkeypatch):
    """No time of their files changes, nor a size."""
    monkeypatch.setattr(decoded_images, "CLOCK_TICK", 0)
    here, there = (write_folder(tmp_path / name, x, CLASSES) for name, x in (("a", IMAGES), ("b", 255 - IMAGES)))
    for file in tmp_path.rglob("*.png"):
        os.utime(file, ns=(0, 0))
    first = load(f"folder:{here}")
    here.rename(tmp_path / "c")
    there.rename(here)
    second = load(f"folder:{here}")
    np.testing.assert_array_equal(second.train.x, 255 - first.train.x)


def test_files_that_were_only_touched_are_not_decoded_anew(tmp_path, cache, decoded):
    folder = write_folder(tmp_path / "images", IMAGES, CLASSES)
    first = load(f"folder:{folder}")
    for file in folder.rglob("*.png"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
        os.utime(file, ns=(0, 1))
    assert_equal(load(f"folder:{folder}"), first)
    assert len(decoded) == 20


@pytest.mark.parametrize("older", [True, False])
def test_content_is_hashed_only_where_it_may_have_changed(tmp_path, cache, monkeypatch, older):
    """A file that was changed just before it was hashed may have been changed again without another time."""
    spec = parquet(tmp_path)
    load(spec)
    if older:
        monkeypatch.setattr(decoded_images, "CLOCK_TICK", 0)
        load(spec)  # hashes again, since it is the first time that the clock has ticked
    hashed, seal = [], decoded_images._seal
    monkeypatch.setattr(decoded_images, "_seal", lambda files: hashed.append(files) or seal(files))
    load(spec)
    assert len(hashed) == (0 if older else 2)


def test_a_changed_shard_is_decoded_anew(tmp_path, cache, decoded):
    """Although nothing but its content tells."""
    file, sources_seen = tmp_path / "images" / "train.parquet", []
    for images in (IMAGES, 255 - IMAGES):
        spec = parquet(tmp_path, images=[encode(image) for image in images])
        pq.write_table(pq.read_table(file), file, compression="none")
        os.utime(file, ns=(0, 0))
        sources_seen.append((load(spec).content_hash, file.stat().st_size))
    (first, size), (second, size_then) = sources_seen
    assert size == size_then
    assert first != second
    assert len(decoded) == 40


def test_files_changed_while_they_are_decoded_are_not_kept(tmp_path, cache, monkeypatch):
    spec = parquet(tmp_path)
    decode = sources._decode

    def change_and_decode(*arguments):
        os.utime(spec.removeprefix("parquet:"), ns=(0, 1))
        return decode(*arguments)

    monkeypatch.setattr(sources, "_decode", change_and_decode)
    assert len(load(spec).train.y) == 16
    assert not entries(cache)


def test_files_deleted_while_they_are_decoded(tmp_path, cache, monkeypatch):
    spec = parquet(tmp_path)
    divide = sources._divide
    monkeypatch.setattr(sources, "_divide", lambda *rest: shutil.rmtree(tmp_path / "images") or divide(*rest))
    with pytest.warns(UserWarning, match=r"cannot be kept in .*No such file"):
        assert len(load(spec).train.y) == 16


def test_another_path_to_the_same_files(tmp_path, cache, decoded, monkeypatch):
    """Is the same entry, and each source is called as the user wrote it."""
    spec = parquet(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    paths = [spec.removeprefix("parquet:"), str(link / "train.parquet"), "images/train.parquet", "images"]
    assert [load(f"parquet:{path}").name for path in paths] == [f"parquet:{path}" for path in paths]
    assert len(decoded) == 20


def test_a_link_that_leads_elsewhere(tmp_path, cache):
    """To a file of equal size and time, as from an archive."""
    for folder, images in (("one", ENCODED), ("two", ENCODED[::-1])):
        os.utime(write_parquet(tmp_path / folder / "a.parquet", images, LABELS), ns=(0, 0))
    link = tmp_path / "link"
    hashes = set()
    for folder in ("one", "two"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / folder)
        hashes.add(load(f"parquet:{link}").content_hash)
    assert len(hashes) == 2


def test_the_same_files_as_other_classes(tmp_path, cache):
    folder = write_folder(tmp_path / "images", IMAGES, CLASSES)
    for name, target in (("x", "bee"), ("y", "ant")):
        (tmp_path / "links" / name).mkdir(parents=True)
        for file in (folder / target).iterdir():
            (tmp_path / "links" / name / file.name).symlink_to(file)
    assert load(f"folder:{folder}").classes == ["ant", "bee", "dog", "çow"]
    assert load(f"folder:{tmp_path / 'links'}").classes == ["x", "y"]


def test_another_decoder_decodes_anew(tmp_path, cache, decoded, monkeypatch):
    spec = parquet(tmp_path)
    load(spec)
    monkeypatch.setattr(decoded_images, "DECODER_VERSION", 0)
    load(spec)
    monkeypatch.setattr("PIL.__version__", "0")
    load(spec)
    assert len(decoded) == 60


def test_files_that_had_to_be_downloaded_are_kept_the_next_time(tmp_path, cache, monkeypatch):
    split = sources._torchvision_split

    def download(name, data_root, train):
        if not (tmp_path / "MNIST").exists():
            write_mnist(tmp_path, "MNIST/raw", ("train", "t10k"))
        return split(name, data_root, train)

    monkeypatch.setattr(sources, "_torchvision_split", download)
    load("mnist", data_root=tmp_path)
    assert not cache.exists(), "there was nothing to know the files by"
    load("mnist", data_root=tmp_path)
    assert len(entries(cache)) == 1


# --- nothing stands in the way ---------------------------------------------------------------------------------------


def truncate(file):
    os.truncate(file, file.stat().st_size - 1)


DAMAGES = {
    "images truncated": lambda entry: truncate(entry / "train_x.npy"),
    "labels truncated": lambda entry: truncate(entry / "test_y.npy"),
    "images empty": lambda entry: os.truncate(entry / "test_x.npy", 0),
    "no images": lambda entry: (entry / "test_x.npy").write_bytes(b"\0" * 200),
    "images missing": lambda entry: (entry / "train_x.npy").unlink(),
    "facts missing": lambda entry: (entry / "facts.json").unlink(),
    "facts truncated": lambda entry: truncate(entry / "facts.json"),
    "other facts": lambda entry: (entry / "facts.json").write_text("{}"),
    "seal missing": lambda entry: (entry / "seal.json").unlink(),
    "other seal": lambda entry: (entry / "seal.json").write_text('{"origin": 1, "entry": []}'),
    "everything missing": shutil.rmtree,
    "other images": lambda entry: rewrite(entry / "train_x.npy", lambda x: 255 - x),
    "other labels": lambda entry: rewrite(entry / "train_y.npy", lambda y: y[::-1]),
    "images of another type": lambda entry: rewrite(entry / "train_x.npy", lambda x: x.astype(float)),
    "images of another shape": lambda entry: rewrite(entry / "train_x.npy", lambda x: x[:, :1]),
    "fewer images": lambda entry: rewrite(entry / "train_x.npy", lambda x: x[:-1]),
    "more labels": lambda entry: rewrite(entry / "train_y.npy", lambda y: np.append(y, y)),
    "pickled images": lambda entry: np.save(entry / "train_x.npy", np.array([{}, {}]), allow_pickle=True),
    "other classes": lambda entry: (entry / "facts.json").write_text(
        (entry / "facts.json").read_text().replace("[0, 1, 2, 3]", "[3, 2, 1, 0]")
    ),
}


def rewrite(file, change):
    """With the same times as before."""
    status = file.stat()
    np.save(file, change(np.load(file)))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_anew(tmp_path, cache, decoded, damage):
    spec = parquet(tmp_path)
    first = load(spec)
    expected = first.train.x.copy()
    (entry,) = entries(cache)
    DAMAGES[damage](entry)
    for _ in range(2):
        np.testing.assert_array_equal(load(spec).train.x, expected)
    assert len(decoded) == 40
    assert entries(cache) == [entry]


def test_a_copied_cache_is_used_if_its_content_is_whole(tmp_path, cache, decoded, monkeypatch):
    spec = parquet(tmp_path)
    first = load(spec)
    shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path / "copy"))
    assert_equal(load(spec), first)
    assert len(decoded) == 20


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
@pytest.mark.parametrize("what", ["folder", "entry"])
@pytest.mark.parametrize("mode", [0o770, 0o702], ids=["group", "others"])
def test_a_cache_that_others_may_write_to_is_not_used(tmp_path, cache, decoded, what, mode):
    spec = parquet(tmp_path)
    load(spec)
    (entry,) = entries(cache)
    folder = {"folder": cache, "entry": entry}[what]
    folder.chmod(mode)
    if what == "entry":
        load(spec)
        assert entry.stat().st_mode & 0o777 == 0o700, "made anew"
    else:
        message = (
            f"decoded images cannot be kept in '{cache}' (others may write to it; take that from them with chmod go-w "
            f"'{cache}'), so every process decodes them and holds a copy of its own; make room there, or set "
            "CONTINUAL_METAOPT_CACHE to a folder of your own that can be written"
        )
        with pytest.warns(UserWarning, match="^decoded images cannot be kept") as warned:
            load(spec)
        assert [str(warning.message) for warning in warned] == [message]
    assert len(decoded) == 40


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
@pytest.mark.parametrize(("owner", "used"), [("me", True), ("root", True), ("somebody else", False)])
def test_somebody_elses_cache_is_not_used(tmp_path, cache, decoded, monkeypatch, owner, used):
    spec = parquet(tmp_path)
    load(spec)
    uid = os.getuid()
    stat = Path.stat

    def stat_as(self, **options):
        status = stat(self, **options)
        if cache not in (self, *self.parents):
            return status
        values = list(status)
        values[4] = {"me": uid, "root": 0, "somebody else": uid + 1}[owner]
        return os.stat_result(values, {"st_mtime_ns": status.st_mtime_ns, "st_ctime_ns": status.st_ctime_ns})

    monkeypatch.setattr(Path, "stat", stat_as)
    if used:
        load(spec)
    else:
        with pytest.warns(UserWarning, match=r"cannot be kept in '.*' \(it belongs to another user\)"):
            load(spec)
    assert len(decoded) == (20 if used else 40)


def test_the_cache_is_made_for_the_user_alone(tmp_path, cache):
    load(parquet(tmp_path))
    if hasattr(os, "getuid"):
        assert [folder.stat().st_mode & 0o777 for folder in (cache, *entries(cache))] == [0o700, 0o700]


def test_a_cache_that_cannot_be_written(tmp_path, no_cache, decoded):
    spec = parquet(tmp_path)
    for _ in range(2):
        with pytest.warns(UserWarning, match="^decoded images cannot be kept in ") as warned:
            assert len(load(spec).train.y) == 16
        (message,) = [str(warning.message) for warning in warned]
        assert str(tmp_path / "file" / "cache" / "decoded_images") in message
        advice = "make room there, or set CONTINUAL_METAOPT_CACHE to a folder of your own that can be written"
        assert message.endswith(advice)
    assert len(decoded) == 40


def test_a_full_disk(tmp_path, cache, decoded, monkeypatch):
    def save(file, array):
        file.write(b"the first bytes still fit")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", save)
    with pytest.warns(UserWarning, match=r"cannot be kept in .*No space left on device"):
        assert len(load(parquet(tmp_path)).train.y) == 16
    assert len(decoded) == 20
    assert not entries(cache), "what was begun is deleted"


def test_a_file_system_without_locks(tmp_path, cache, monkeypatch):
    def acquire(self):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(decoded_images.FileLock, "acquire", acquire)
    with pytest.warns(UserWarning, match=r"cannot be kept in .*no locks here"):
        assert len(load(parquet(tmp_path)).train.y) == 16


def test_errors_of_decoding_are_not_taken_for_the_caches(tmp_path, cache, monkeypatch):
    def decode(*_):
        raise OSError("the images are on a broken disk")

    monkeypatch.setattr(sources, "_decode", decode)
    with pytest.raises(OSError, match="the images are on a broken disk"):
        load(parquet(tmp_path))


# --- several processes -----------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from pathlib import Path
from continual_metaopt.streams import sources
decode = sources._decode
def slowly(where, *rest):
    print(where, flush=True)
    time.sleep(float(sys.argv[2]))
    return decode(where, *rest)
sources._decode = slowly
print("ready", flush=True)
sys.stdin.readline()
print(sources.load_source(sys.argv[1]).content_hash)
"""


def start(spec, seconds_per_image):
    command = [sys.executable, "-c", SLOW, spec, str(seconds_per_image)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_of_several_processes_at_once_one_decodes_and_the_others_wait(tmp_path, cache):
    spec = parquet(tmp_path)
    processes = [start(spec, 0.02) for _ in range(3)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(map(len, lines)) == [1, 1, 21], "one of them decoded twenty images"
    assert len({found[-1] for found in lines}) == 1
    assert all(process.returncode == 0 for process in processes)


def test_a_process_that_dies_while_decoding_blocks_nobody(tmp_path, cache, decoded):
    spec = parquet(tmp_path)
    process = start(spec, 60)
    process.stdin.write("go\n")
    process.stdin.flush()
    process.stdout.readline()  # it is decoding the first image
    process.kill()
    process.communicate()
    load(spec)
    assert len(decoded) == 20
    assert len(entries(cache)) == 1


# --- room ------------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_entries_are_deleted(tmp_path, cache, decoded, monkeypatch):
    specs = [parquet(tmp_path, f"{i}.parquet") for i in range(4)]
    used = []
    for i in (0, 1, 2, 0):  # the first is used again
        used.append(load(specs[i]))
        time.sleep(0.02)
    size = sum(file.stat().st_size for file in entries(cache)[0].iterdir())
    monkeypatch.setattr(decoded_images, "MAX_BYTES", 2.5 * size)
    load(specs[3])
    assert len(entries(cache)) == 2
    decoded.clear()
    load(specs[0])
    load(specs[3])
    assert not decoded
    if sys.platform != "win32":  # there, what is in use stays
        np.testing.assert_array_equal(used[1].train.x, used[0].train.x)
        load(specs[1])
        assert len(decoded) == 20


def test_an_entry_larger_than_the_room_is_kept_until_the_next(tmp_path, cache, decoded, monkeypatch):
    monkeypatch.setattr(decoded_images, "MAX_BYTES", 1)
    for spec in [parquet(tmp_path, f"{i}.parquet") for i in range(2)]:
        decoded.clear()
        load(spec)
        load(spec)
        assert len(decoded) == 20
        assert len(entries(cache)) == 1


def test_what_a_dead_process_had_begun_to_write_is_deleted(tmp_path, cache):
    spec = parquet(tmp_path)
    load(spec)
    (entry,) = entries(cache)
    begun = entry.rename(cache / f".{entry.name}.1234.new")
    seal = cache / f".{entry.name}.1234.seal.json"
    seal.touch()
    load(spec)
    assert entries(cache) == [entry]
    assert not begun.exists()
    assert not seal.exists()


def test_only_entries_are_deleted(tmp_path, cache, monkeypatch):
    """The folder that the user names may hold anything else."""
    cache.mkdir(mode=0o700, parents=True)
    others = [cache.parent / "thesis", cache / "thesis", cache / ("0" * 32), cache / ("1" * 32 + "-index")]
    for folder in others:
        folder.mkdir()
        (folder / "chapter.tex").touch()
    (cache / ("2" * 32)).symlink_to(others[0])
    monkeypatch.setattr(decoded_images, "MAX_BYTES", 0)
    load(parquet(tmp_path))
    assert all((folder / "chapter.tex").exists() for folder in others)


@pytest.mark.parametrize("value", [None, ""])
def test_the_usual_place(monkeypatch, value):
    monkeypatch.delenv("CONTINUAL_METAOPT_CACHE")
    if value is not None:
        monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", value)
    usual = platformdirs.user_cache_path("continual-metaopt", appauthor=False)
    assert decoded_images.cache_folder() == usual / "decoded_images"


def test_another_place(monkeypatch):
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", "~/elsewhere")
    assert decoded_images.cache_folder() == Path.home() / "elsewhere" / "decoded_images"
