"""Recognition of the format of a data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dualfuse.data.shards.tar_index import is_tar_name
from dualfuse.data.text.decode import UndecodableText, codec_of
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_TABLE, open_regular, read_json, walk
from dualfuse.io import listing
from dualfuse.prepare.sources.cells import is_url
from dualfuse.prepare.sources.columns import Columns, choose
from dualfuse.prepare.sources.labels.cifar import cifar_version
from dualfuse.prepare.sources.labels.label_maps import has_label_maps
from dualfuse.prepare.sources.pairs.coco_captions import caption_files
from dualfuse.prepare.sources.pairs.folder import is_image_name
from dualfuse.prepare.sources.pairs.nocaps import nocaps_files
from dualfuse.prepare.sources.pairs.tables import is_metadata
from dualfuse.prepare.sources.pairs.visual_genome_regions import FILE, has_regions
from dualfuse.prepare.sources.questions.easy_vqa import easy_vqa_folder
from dualfuse.prepare.sources.questions.nlvr2 import sentence_files
from dualfuse.prepare.sources.questions.snli_ve import pair_files
from dualfuse.prepare.sources.questions.visual_genome import is_visual_genome
from dualfuse.prepare.sources.questions.vqav2 import question_files
from dualfuse.prepare.sources.rows import read_rows

FORMATS = {
    "folder": "a folder of images, each with a .txt file of captions beside it (also img2dataset's format files), "
    "or, with --label folder, with a sub-folder for each class",
    "table": "a .csv, .tsv, .jsonl, .json or .parquet table with an image and a caption in each row, or parquet files",
    "karpathy": "JSON of Karpathy's splits: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json",
    "captions": "JSON of COCO captions such as annotations/captions_train2017.json, or a folder with several",
    "vqav2": "the folder of v2_OpenEnded_mscoco_*_questions.json, with the annotations",
    "visual-genome": "question_answers.json of Visual Genome, or its folder",
    "visual-genome-regions": "region_descriptions.json of Visual Genome, or a folder with it and without questions",
    "nlvr2": "train.json, dev.json, test1.json of NLVR2, or their folder",
    "snli-ve": "snli_ve_train.jsonl, ... of SNLI-VE, or their folder",
    "easy-vqa": "the folder of the package easy_vqa: data/train/images, data/train/questions.json, data/answers.txt",
    "cifar": "the folder cifar-10-batches-bin, cifar-100-binary, cifar-10-batches-py or cifar-100-python",
    "nocaps": "nocaps_val_4500_captions.json or nocaps_test_image_info.json of NoCaps, or their folder",
    "label-maps": "a folder with images/…/NAME.jpg and annotations/…/NAME.png (ADE20K: ADEChallengeData2016)",
    "tar": "tar shards in the WebDataset layout (also the output of img2dataset)",
}
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
PACKED = "compressed tar"
MAX_HEADER = 4096  # bytes of a table's first line
_MAX_FILES = 100_000
_COLUMNS = Columns()


def recognize(source: Path, exclude: Path | None = None, columns: Columns = _COLUMNS) -> tuple[str, Path]:
    """Return the format of ``source``, one of ``FORMATS``, and the file or folder to read.

    The latter is ``source`` itself, or the only table with images (in one of ``columns``) in a folder without text
    files. The folder ``exclude`` is ignored. Raises ``DualfuseError`` with the contents of ``source`` and the known
    formats.
    """
    if not source.exists():
        raise DualfuseError(f"{source} does not exist; give a file or a folder:\n{_known_formats()}")
    return _published(source) or (_folder(source, exclude, columns) if source.is_dir() else (_file(source), source))


def _published(source: Path) -> tuple[str, Path] | None:
    """Return the published data set in ``source``, recognized by its file names; None if there is none.

    Raises ``DualfuseError`` if there are several.
    """
    in_folder = source.is_dir()
    genome = source / "question_answers.json" if in_folder else source
    regions = source / FILE if in_folder and not genome.is_file() else source
    paths = {
        "captions": source if in_folder and caption_files(source) else None,
        "vqav2": source if in_folder and question_files(source) else None,
        "visual-genome": genome if genome.suffix == ".json" and is_visual_genome(genome) else None,
        "visual-genome-regions": regions if regions.suffix == ".json" and has_regions(regions) else None,
        "nlvr2": source if sentence_files(source) else None,
        "snli-ve": source if pair_files(source) else None,
        "easy-vqa": easy_vqa_folder(source),
        "cifar": source if cifar_version(source) else None,
        "nocaps": source if nocaps_files(source) else None,
    }
    paths["label-maps"] = source if in_folder and has_label_maps(source) else None
    kinds = [(kind, path) for kind, path in paths.items() if path]
    if len(kinds) > 1:
        names = ", ".join(kind for kind, _ in kinds)
        raise DualfuseError(f"{source} holds several data sets: {names}; put each into a folder of its own")
    return kinds[0] if kinds else None


def _file(path: Path) -> str:
    suffix = path.suffix.lower()
    if is_tar_name(path.name):
        return "tar"
    if suffix == ".json":
        return _json(path)
    if suffix in _TABLES or (suffix == ".txt" and _has_header(path)):
        return "table"
    raise DualfuseError(f"the format of {path} is unknown; known formats are:\n{_known_formats()}")


def _has_header(path: Path) -> bool:
    """Return whether a .txt file is a csv table, such as the captions.txt of Flickr8k."""
    with open_regular(path) as file:
        head = file.read(MAX_HEADER)
    line = head.decode(codec_of(head), errors="replace").lstrip().lower()  # only to recognize it
    return line.startswith(("image,", "image_name,", "image\t", "image_name|"))


def _json(path: Path) -> str:
    try:
        content = read_json(path, MAX_TABLE)
    except ValueError as error:
        raise DualfuseError(
            f"{path} is not a JSON file ({error}); name a file with one JSON object per line .jsonl"
        ) from None
    match content:
        case {"images": [*entries]} if any(isinstance(entry, dict) and "sentences" in entry for entry in entries):
            return "karpathy"
        case {"images": [*_], "annotations": [*entries]} if any("caption" in e for e in entries if isinstance(e, dict)):
            return "captions"
        case [{**row}, *_] if any(isinstance(cell, str) for cell in row.values()):
            return "table"
        case {**keys}:
            content_type = f"an object with {listing(keys)}"
        case _:
            content_type = f"a {type(content).__name__}"
    raise DualfuseError(
        f"{path} contains {content_type}, which is not a known JSON format; known formats are:\n{_known_formats()}"
    )


def _folder(folder: Path, exclude: Path | None, columns: Columns) -> tuple[str, Path]:
    endings, texts, metadata = _count_files(folder, exclude)
    if endings[".tar"]:
        return "tar", folder
    if not texts:
        tables = [path for path in sorted(folder.iterdir()) if is_table_name(path.name)]
        if endings["images"]:
            tables = [path for path in tables if _has_images(path, columns)]
        if metadata and all(_has_images(path, columns) for path in metadata):
            return "table", metadata[0] if metadata == [folder / metadata[0].name] else folder
        if len(tables) == 1:
            return "table", tables[0]
    if endings["images"]:
        return "folder", folder
    if endings[".parquet"]:
        return "table", folder
    if endings[PACKED]:
        return "tar", folder  # whose reader says how to unpack them
    files = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(6)) or "no files"
    raise DualfuseError(
        f"{folder} contains {files}, which is not a known data set; known formats are:\n{_known_formats()}"
    )


def is_table_name(name: str) -> bool:
    """Return whether a file is a table by its name, such as the captions.txt of Flickr8k."""
    return name.lower().endswith(_TABLES) or name == "captions.txt"


def _has_images(table: Path, columns: Columns) -> bool:
    """Return whether the first readable row of a table names an image in a file, or holds one."""
    try:
        row = next((row.cells for row in read_rows(table) if not row.problem), {})
        return not is_url(row.get(choose(row, columns, str(table)).image))
    except UndecodableText:  # reading it says so
        return True
    except DualfuseError:
        return False


def _count_files(folder: Path, exclude: Path | None) -> tuple[Counter[str], bool, list[Path]]:
    """Return the number of files by suffix, whether any image has a .txt file, and Hugging Face's tables of metadata.

    Stops after many files.
    """
    endings: Counter[str] = Counter()
    has_texts, metadata = False, []
    for parent, files in walk(folder, exclude=exclude):
        stems = {Path(file).stem for file in files if is_image_name(file)}
        has_texts |= any(file.lower().endswith(".txt") and file[:-4] in stems for file in files)
        metadata += [folder / parent / file for file in files if is_metadata(file)]
        endings.update("images" if is_image_name(file) else _ending(file) for file in files)
        if endings.total() > _MAX_FILES:
            break
    return endings, has_texts, metadata


def _ending(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return PACKED if is_tar_name(name) and suffix != ".tar" else suffix


def _known_formats() -> str:
    return "\n".join(f"  {text}" for text in FORMATS.values())
