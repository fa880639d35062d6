"""ImageNet: class order, the evaluation and training views, and minibatches that no number of workers changes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from hydrabench.config import DataRecipe
from hydrabench.data import TrainingBatches, block_indices, load_block, load_images, loaders, validation_split
from hydrabench.data.encoded import EncodedImages, Files, ParquetRows, random_window
from hydrabench.errors import ConfigError, DataError
from hydrabench.runtime import stream

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_imagenet = pytest.mark.skipif(
    not (SHARED / "imagenet").is_dir(),
    reason="real ImageNet files are not beside this checkout (../shared/data/imagenet)",
)
REFERENCE = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
TRAIN = DataRecipe(name="imagenet", flip=True)


def picture(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth random image: JPEG keeps most of it."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


def write_folder(root: Path, classes: int = 1000, images: int = 1) -> Path:
    """Class folders with small images; the last classes come first on the disk."""
    data = jpeg(picture(0, 40, 30))
    for number in reversed(range(classes)):
        folder = root / f"n{number * 7:08d}"
        folder.mkdir(parents=True)
        for image in range(images if number < 3 else 1):
            (folder / f"{folder.name}_{image}.JPEG").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory) -> Path:
    """A data folder with all 1,000 classes of `imagenet/val`, the first three with images of their own."""
    folder = tmp_path_factory.mktemp("data")
    root = write_folder(folder / "imagenet" / "val", images=2)
    for number in range(6):
        name = f"n{number // 2 * 7:08d}"
        data = jpeg(picture(number, 300 + 20 * number, 260 - 10 * number))
        (root / name / f"{name}_{number % 2}.JPEG").write_bytes(data)
    (folder / "imagenet" / "train").symlink_to(root)
    return folder


def test_labels_are_positions_of_sorted_wordnet_ids_as_torchvision_has_them(class_folders):
    found = load_images("imagenet", "train", class_folders)
    reference = ImageFolder(str(class_folders / "imagenet" / "val"))
    assert found.labels.tolist() == reference.targets == [0, 0, 1, 1, 2, 2, *range(3, 1000)]
    names = [Path(path).name for path, _ in reference.samples]
    assert [Path(found.encoded.name(position)).name for position in range(8)] == names[:8]
    assert (found.name, found.split, found.num_classes, found.shape) == ("imagenet", "train", 1000, (3, 224, 224))


def test_validation_images_are_in_the_order_of_the_hashes_of_their_names_and_keep_their_labels(class_folders):
    """In the order of the folders, the first 50 of ImageNet are one class."""
    found = load_images("imagenet", "test", class_folders)
    assert (found.split, len(found)) == ("test-shuffled", 1003)
    names = [Path(name).name for name in found.file_names()]
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert found.labels.tolist() == [int(name[1:9]) // 7 for name in names]
    assert len(set(found.labels[:50].tolist())) > 45


def test_evaluation_sees_the_centre_as_torchvision_cuts_it(class_folders):
    found = load_images("imagenet", "test", class_folders)
    reference = ImageFolder(str(class_folders / "imagenet" / "val"), transform=REFERENCE)
    names = [Path(name).name for name in found.file_names()]
    chosen = torch.tensor([names.index(Path(path).name) for path, _ in reference.samples[:6]])
    assert torch.equal(found.take(chosen), torch.stack([reference[index][0] for index in range(6)]))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_images_are_turned_into_rgb(tmp_path, mode):
    (tmp_path / "image.JPEG").write_bytes(jpeg(picture(1, 300, 280, mode)))
    one = EncodedImages("imagenet", "test", Files(tmp_path, ["image.JPEG"]), torch.arange(1), torch.zeros(1), 1000)
    expected = REFERENCE(Image.open(tmp_path / "image.JPEG").convert("RGB"))
    assert torch.equal(one.take(torch.tensor([0]))[0], expected)


def test_blocks_are_decoded_as_they_are_needed(class_folders, monkeypatch):
    found = load_images("imagenet", "train", class_folders)
    opened = []
    read = Files.read
    monkeypatch.setattr(Files, "read", lambda self, position: opened.append(position) or read(self, position))
    block = load_block(found, 1, block_indices(6, 2)[1])
    assert sorted(opened) == [2, 3]
    assert (block.images.shape, block.images.dtype, block.labels.tolist()) == ((2, 3, 224, 224), torch.float32, [1, 1])
    assert torch.equal(block.images * 255, found.take(torch.tensor([2, 3])).float())


def test_fewer_class_folders_are_refused_since_labels_would_be_others(tmp_path):
    write_folder(tmp_path / "imagenet" / "val", classes=10)
    with pytest.raises(
        DataError, match=r"val holds 10 class folders of ImageNet's 1000; labels are positions among all"
    ):
        load_images("imagenet", "test", tmp_path)


def test_folders_that_are_not_called_by_wordnet_ids_are_refused(tmp_path):
    (tmp_path / "val" / "tench").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"val holds the folder 'tench'; ImageNet's class folders are called by WordNet"
    ):
        load_images("imagenet", "test", tmp_path)


def test_an_empty_class_folder_is_refused(tmp_path):
    root = write_folder(tmp_path / "val")
    (root / "n00000007" / "n00000007_0.JPEG").unlink()
    with pytest.raises(DataError, match=r"val is not a folder of ImageNet images: .*n00000007"):
        load_images("imagenet", "test", tmp_path)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", r"no ImageNet test images in .*: neither validation-\*\.parquet .* nor imagenet/val with a folder"),
        ("train", r"no ImageNet train images in .*: there is no imagenet/train with a folder for each class; get them"),
    ],
)
def test_missing_imagenet_says_what_was_looked_for(tmp_path, split, message):
    with pytest.raises(DataError, match=message):
        load_images("imagenet", split, tmp_path, download=True)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    data = jpeg(picture(0, 300, 300))
    (tmp_path / "torn.JPEG").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.JPEG").write_bytes(b"text")
    files = Files(tmp_path, ["torn.JPEG", "text.JPEG", "gone.JPEG"])
    images = EncodedImages("imagenet", "train", files, torch.arange(3), torch.zeros(3), 1000)
    for index, name in enumerate(["torn", "text", "gone"]):
        with pytest.raises(DataError, match=rf"{name}\.JPEG cannot be read as an image") as refused:
            images.take(torch.tensor([index]))
        assert "BytesIO" not in str(refused.value), "a buffer says nothing to the user"
        assert str(refused.value).endswith(": of no known format") == (name == "text")
        one = images.subset(torch.tensor([index]), "train")
        for workers in (0, 1):
            monkeypatch.setattr(loaders, "_workers", lambda workers=workers: workers)
            minibatches = TrainingBatches(one, None, TRAIN, batch_size=1, key=(0,), device=CPU)
            with pytest.raises(DataError, match=rf"^{tmp_path}/{name}\.JPEG cannot be read as an image"):
                list(minibatches.epoch(0))


def write_rows(file: Path, images: list[bytes | None], labels: list[int], group: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [{"bytes": data, "path": None} for data in images], "label": labels})
    pq.write_table(table, file, row_group_size=group)


def test_parquet_files_bring_labels_of_their_own_and_may_hold_few_classes(tmp_path):
    data = [jpeg(picture(number, 250, 300)) for number in range(7)]
    write_rows(tmp_path / "imagenet" / "validation-00000-of-00002.parquet", data[:5], [9, 999, 0, 5, 5], group=2)
    write_rows(tmp_path / "imagenet" / "validation-00001-of-00002.parquet", data[5:], [3, 2], group=2)
    found = load_images("imagenet", "test", tmp_path)
    assert found.labels.tolist() == [9, 999, 0, 5, 5, 3, 2]
    order = torch.tensor([6, 0, 4, 3, 5, 1, 2])
    expected = torch.stack([REFERENCE(Image.open(io.BytesIO(data[index]))) for index in order.tolist()])
    assert torch.equal(found.take(order), expected)


def test_rows_in_order_read_every_row_group_once(tmp_path, monkeypatch):
    write_rows(tmp_path / "validation-0.parquet", [bytes([n]) for n in range(10)], list(range(10)), group=4)
    groups = []
    monkeypatch.setattr(
        "hydrabench.data.encoded.read_encoded",
        lambda file, chosen: groups.append(chosen[0]) or imagenet_rows(file, chosen),
    )
    rows = ParquetRows([tmp_path / "validation-0.parquet"])
    assert [rows.read(position) for position in range(10)] == [bytes([n]) for n in range(10)]
    assert groups == [0, 1, 2]


def imagenet_rows(file: Path, chosen: list[int]) -> list[list[bytes]]:
    rows = pq.ParquetFile(file).read_row_group(chosen[0])["image"].to_pylist()
    return [[row["bytes"] for row in rows]]


def test_a_row_without_an_image_is_named(tmp_path):
    write_rows(tmp_path / "imagenet" / "validation-0.parquet", [jpeg(picture(0, 250, 250)), None, None], [0, 1, 2], 2)
    found = load_images("imagenet", "test", tmp_path)
    with pytest.raises(DataError, match=r"validation-0\.parquet, row 0 of row group 1 cannot be read as an image: of"):
        found.take(torch.tensor([0, 2]))


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 700), width=st.integers(1, 700))
def test_random_windows_are_torchvisions(seed, height, width):
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    found = random_window(height, width, torch.Generator().manual_seed(seed))
    assert found == tuple(expected)
    top, left, high, wide = found
    assert 0 <= top <= top + high <= height
    assert 0 <= left <= left + wide <= width


def test_random_views_are_torchvisions_crops_and_half_of_them_are_mirrored(class_folders):
    found = load_images("imagenet", "train", class_folders)
    image = Image.open(found.encoded.name(2))
    mirrored = 0
    for seed in range(40):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = transforms.PILToTensor()(transforms.RandomResizedCrop(224)(image))
        plain, flipped = (
            found.random_view(2, flip=flip, generator=torch.Generator().manual_seed(seed)) for flip in (False, True)
        )
        assert torch.equal(plain, expected)
        mirrored += torch.equal(flipped, expected.flip(2))
        assert torch.equal(flipped, expected) or torch.equal(flipped, expected.flip(2))
    assert 10 <= mirrored <= 30


def epochs(images: EncodedImages, workers: int, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders, "_workers", lambda: workers)
        minibatches = TrainingBatches(images, None, TRAIN, batch_size=4, key=(3, "train"), device=CPU)
        return [pair for number in (0, 1) for pair in minibatches.epoch(number, first=first)]


def test_minibatches_do_not_depend_on_workers_on_where_an_epoch_begins_or_on_global_random_numbers(class_folders):
    images = load_images("imagenet", "train", class_folders).subset(torch.arange(10), "train")
    plain = epochs(images, 0)
    assert [tuple(x.shape) for x, _ in plain] == [(4, 3, 224, 224), (4, 3, 224, 224), (2, 3, 224, 224)] * 2
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (1, 2):
        for expected, found in zip(plain, epochs(images, workers), strict=True):
            assert torch.equal(expected[0], found[0])
            assert torch.equal(expected[1], found[1])
    assert torch.equal(torch.get_rng_state(), before)
    late = epochs(images, 0, first=2)
    assert torch.equal(late[0][0], plain[2][0])
    assert torch.equal(late[1][0], plain[5][0])
    assert not torch.equal(plain[0][0], plain[3][0])


def second_half(whole: int) -> slice:
    return slice(whole // 2, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_of_a_part_of_each_minibatch_only_that_part_is_decoded_to_the_same_bytes(class_folders, workers, monkeypatch):
    images = load_images("imagenet", "train", class_folders).subset(torch.arange(10), "train")
    whole = epochs(images, 0)
    minibatches = TrainingBatches(images, None, TRAIN, batch_size=4, key=(3, "train"), device=CPU)
    monkeypatch.setattr(loaders, "_workers", lambda: workers)
    decoded, view = [], EncodedImages.random_view
    monkeypatch.setattr(
        EncodedImages, "random_view", lambda self, index, **how: (decoded.append(index), view(self, index, **how))[1]
    )
    parts = list(minibatches.epoch(1, rows=second_half))
    for (x, y), (part, labels) in zip(whole[3:], parts, strict=True):
        half = len(y) // 2
        assert torch.equal(part[half:], x[half:])
        assert not part[:half].any()
        assert torch.equal(labels, y)
    assert len(decoded) == (0 if workers else 5)  # what a worker process does is not seen here


def test_every_image_has_a_stream_of_its_own_in_every_epoch(class_folders):
    """Epoch 1 begins with image order[0], seen through the stream (…, "augment", 1, order[0])."""
    images = load_images("imagenet", "train", class_folders).subset(torch.arange(10), "train")
    order = torch.randperm(10, generator=stream(3, "train", "order", 1)).tolist()
    x, y = epochs(images, 0)[3]
    for row, index in enumerate(order[:4]):
        view = images.random_view(index, flip=True, generator=stream(3, "train", "augment", 1, index))
        assert torch.equal(x[row], view.float() / 255)
    assert y.tolist() == images.labels[order[:4]].tolist()


def test_settings_that_random_views_do_not_have_are_refused(class_folders):
    images = load_images("imagenet", "train", class_folders)
    wrong = DataRecipe(name="imagenet", crop_padding=4)
    with pytest.raises(ConfigError, match=r"imagenet is trained on random parts of images; leave out crop_padding"):
        TrainingBatches(images, None, wrong, batch_size=4, key=(0,), device=CPU)
    with pytest.raises(ConfigError, match=r"leave out crop_padding and pseudo_labels"):
        TrainingBatches(images, images, TRAIN, batch_size=4, key=(0,), device=CPU)


def test_encoded_images_are_split_like_those_in_memory(class_folders):
    images = load_images("imagenet", "train", class_folders)
    train, held_out = validation_split(images, 0.1)
    assert (len(train), len(held_out), held_out.split) == (903, 100, "validation")
    assert sorted(train.positions.tolist() + held_out.positions.tolist()) == list(range(1003))
    assert held_out.labels.tolist() == images.labels[held_out.positions].tolist()


def test_processes_of_one_machine_share_its_processors(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert loaders._workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loaders._workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert loaders._workers() == 1


@needs_imagenet
def test_the_real_imagenet_images_are_read_with_labels_in_the_order_of_wordnet_ids():
    found = load_images("imagenet", "test", SHARED)
    table = pq.read_table(SHARED / "imagenet" / "validation-00000-of-00001.parquet")
    assert len(found) == 500
    pairs = sorted(zip(table["wnid"].to_pylist(), found.labels.tolist(), strict=True))
    assert [label for _, label in pairs] == sorted(found.labels.tolist())
    rows = [0, 17, 499]
    expected = [REFERENCE(Image.open(io.BytesIO(table["image"][row].as_py()["bytes"])).convert("RGB")) for row in rows]
    assert torch.equal(found.take(torch.tensor(rows)), torch.stack(expected))


@needs_imagenet
def test_all_real_imagenet_images_are_decoded():
    found = load_images("imagenet", "test", SHARED)
    means = [
        load_block(found, number, block).images.mean((0, 2, 3)) for number, block in enumerate(block_indices(500, 100))
    ]
    assert torch.stack(means).mean(0).tolist() == pytest.approx(
        [0.485, 0.456, 0.406], abs=0.03
    )  # of ImageNet's training images
