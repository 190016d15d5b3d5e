"""Pictures that are not drawn here: scikit-learn's digits, a folder of one's own for each label, or one with masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.signatures import checked, shown
from .checks import integer, number
from .scenes import Scenes, scenes_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MODES = {"grey": "L", "rgb": "RGB"}  # Pillow's names for them: 8 bits a channel


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures and what is on them.   images: (N, S, S) or (N, 3, S, S) float32 in [0, 1]; labels: (N,) integers

    names: what the labels are the numbers of. pictures[rows] are some of them.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> "Pictures":
        return Pictures(self.images[rows], self.labels[rows], self.names)

    def split(self, share: float = 0.2, rng: Any = 0) -> tuple["Pictures", "Pictures"]:
        """(to train on, held out): of each label this share is held out, at least one picture and never all.

        Raises ValueError for a label with a single picture.
        """
        share = number("split: share", share, ("a number between 0 and 1", lambda v: 0 < v < 1))
        rng, held_out = np.random.default_rng(rng), np.zeros(len(self), bool)
        for label, name in enumerate(self.names):
            rows = rng.permutation(np.flatnonzero(self.labels == label))
            if len(rows) == 1:
                raise ValueError(f"split: there is one picture of {name!r}, expected at least two")
            held_out[rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)]] = True
        return self[~held_out], self[held_out]


@checked
def load_digits(size: int = 8) -> Pictures:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, 1 is ink, each pixel `size` / 8 wide.

    Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI; here its test set. Raises ImportError
    where scikit-learn is not installed, ValueError for a size that is no multiple of 8, or above 64.
    """
    if integer("load_digits: size", size, 8) % 8 or size > 64:
        raise ValueError(f"load_digits: size = {size}, expected a multiple of 8, up to 64")
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError('load_digits: scikit-learn brings the digits: pip install "minilora[images]"') from None
    found = datasets.load_digits()
    images = (found.images / 16).astype(np.float32).repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    return Pictures(images, found.target.astype(np.int64), tuple("0123456789"))


@checked
def image_folder(path: str | Path, size: int | None = None, mode: str | None = None) -> Pictures:
    """The pictures in a folder that has a folder for each label, whose name it is; labels and files by their names.

    size: how many pixels each side has; by default as many as the first picture's. mode: "grey" or "rgb" makes all so;
    by default they are what the first is, and one of another mode is refused, as is one of another size: nothing is
    cut, stretched or recoloured unsaid. Raises FileNotFoundError or ValueError that name the file.
    """
    if mode not in (None, *MODES):
        raise ValueError(f"image_folder: mode = {shown(mode)}, expected 'grey', 'rgb' or None")
    size, root = None if size is None else integer("image_folder: size", size, 1), Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"image_folder: there is no folder {str(path)!r}")
    files = {folder: [*_files("image_folder", folder, folder.name)] for folder in _folders(root)}
    images = _alike("image_folder", [file for own in files.values() for file in own], size, mode, "'grey' or 'rgb'")
    images = images if images.ndim == 3 else np.moveaxis(images, -1, 1)
    labels = np.repeat(np.arange(len(files)), [len(own) for own in files.values()])
    return Pictures(images, labels, tuple(folder.name for folder in files))


@checked
def scene_folder(path: str | Path, size: int | None = None, mode: str | None = None, rng: Any = 0) -> Scenes:
    """The pictures in path/images, each with the mask of its name in path/masks, in the order of their names.

    A mask has two values, 0 outside and another inside, whichever that is; photographs are kept as they are: size and
    mode are `image_folder`'s, but a segmenter's pictures are grey, so one in colours is refused unless mode = "grey".
    rng: a seed or a numpy Generator, for the points. Raises FileNotFoundError or ValueError that name the file.
    """
    if mode not in (None, "grey"):
        raise ValueError(f"scene_folder: mode = {shown(mode)}, expected 'grey' or None")
    size, root = None if size is None else integer("scene_folder: size", size, 1), Path(path)
    for folder in (root, root / "images", root / "masks"):
        if not folder.is_dir():
            wanted = f"expected {root.name}/images/NAME.png and {root.name}/masks/NAME.png"
            raise FileNotFoundError(f"scene_folder: there is no folder {str(folder)!r}; {wanted}")
    pictures, masks = (_named(root / name) for name in ("images", "masks"))
    for own, other, what in ((pictures, masks, "mask"), (masks, pictures, "picture")):
        if alone := sorted(own.keys() - other.keys()):
            lacks = f"masks/{alone[0]}.png" if what == "mask" else f"images/{alone[0]}.png"
            raise ValueError(f"scene_folder: {own[alone[0]]} has no {what}: there is no {lacks}")
    images = _alike("scene_folder", list(pictures.values()), size, mode, "'grey'")
    if images.ndim > 3:
        raise ValueError(f"scene_folder: {next(iter(pictures.values()))}: mode RGB; mode='grey' makes all grey")
    return scenes_of(images, np.stack([_mask(masks[name], images.shape[1]) for name in pictures]), rng)


def _alike(caller: str, files: Sequence[Path], size: int | None, mode: str | None, modes: str) -> np.ndarray:
    """Pictures of one size and mode, or an error that names the first that has another: (N, S, S) or (N, S, S, 3)

    modes: those that the caller could make them all.
    """
    first, images = "", []
    for file in files:
        array, found = _read(caller, file, MODES[mode] if mode else None)
        size, first = size or len(array), first or found
        if array.shape[:2] != (size, size):
            came = f"{array.shape[1]} x {array.shape[0]} pixels"
            raise ValueError(f"{caller}: {file}: {came}, expected {size} x {size}; make all of one size first")
        if found != first:
            fix = f"mode={modes} makes them alike"
            raise ValueError(f"{caller}: {file}: mode {found}, the first picture's is {first}; {fix}")
        images.append(array)
    return np.stack(images)


def _named(folder: Path) -> dict[str, Path]:
    """{name: file} of a folder. Raises ValueError for two files of one name."""
    files: dict[str, Path] = {}
    for file in _files("scene_folder", folder, folder.name):
        if file.stem in files:
            raise ValueError(f"scene_folder: {files[file.stem]} and {file.name} are of one name: whose is its mask?")
        files[file.stem] = file
    return files


def _mask(file: Path, size: int) -> np.ndarray:
    """A mask, True inside: (S, S). Raises ValueError for another size, and for other values than 0 and one more."""
    picture = _opened("scene_folder", file)
    values = np.asarray(picture).astype(int)  # of a palette, its numbers
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]  # grey that is written as colours
    if values.shape[:2] != (size, size):
        came = f"{values.shape[1]} x {values.shape[0]} pixels"
        raise ValueError(f"scene_folder: {file}: {came}, its picture has {size} x {size}")
    found = np.unique(values)
    if values.ndim == 3 or len(found) > 2 or (len(found) == 2 and found[0]):
        some = ", ".join(map(str, found[:4])) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        came = "it is coloured" if values.ndim == 3 else f"it holds {some}"
        fix = "; JPEG blurs masks, PNG keeps them" if file.suffix.lower() in (".jpg", ".jpeg") else ""
        raise ValueError(f"scene_folder: {file}: {came}, expected two values, 0 outside and 255 inside{fix}")
    if not values.any():
        raise ValueError(f"scene_folder: {file}: no pixel is inside: there is nothing to point at")
    return values > 0


def _folders(root: Path) -> list[Path]:
    """The labels' folders. Raises ValueError where there is none, or a file beside them."""
    inside = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    if beside := [entry for entry in inside if not entry.is_dir()]:
        raise ValueError(f"image_folder: {beside[0]} is in no label's folder: {root.name}/LABEL/{beside[0].name}")
    if not inside:
        raise ValueError(f"image_folder: {root} is empty, expected a folder for each label, with pictures in it")
    return inside


def _files(caller: str, folder: Path, what: str) -> Iterator[Path]:
    """The pictures in a folder, by their names. Raises ValueError where there is none, or something else."""
    inside = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    if not inside:
        raise ValueError(f"{caller}: {folder} is empty, expected pictures of {what!r}")
    for entry in inside:
        if not entry.is_file() or entry.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{caller}: {entry} is no picture, expected one of {', '.join(SUFFIXES)}")
        yield entry


def _read(caller: str, file: Path, wanted: str | None) -> tuple[np.ndarray, str]:
    """A picture (height, width) or (height, width, 3) in [0, 1], and its mode, made the wanted one where one is."""
    picture = _opened(caller, file)
    plain = picture.convert(wanted or {"1": "L", "P": "RGB"}.get(picture.mode, picture.mode))
    return np.asarray(plain, np.float32) / 255, plain.mode


def _opened(caller: str, file: Path) -> Any:
    """Pillow's picture: one, grey or RGB, of 8 bits, opaque; or an error that names the file."""
    from PIL import Image  # which Matplotlib brings

    try:
        with Image.open(file) as picture:
            picture.load()
            seen = picture.mode in ("1", *MODES.values()) or (
                picture.mode == "P" and "transparency" not in picture.info
            )
            frames = getattr(picture, "n_frames", 1)
            if not seen or frames > 1:
                what = f"mode {picture.mode}" if not seen else f"{frames} pictures in one"
                raise ValueError(f"{caller}: {file}: {what}, expected grey or RGB of 8 bits, opaque")
            return picture.copy()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{caller}: {file}: not a picture that can be read: {error}") from None
