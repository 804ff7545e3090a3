"""Formats of image files: those that are decoded, by Pillow or its plugins, and the names of all others."""

from __future__ import annotations

from pathlib import Path

from PIL import features

from dualfuse.errors import DualfuseError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")
"""Suffixes of raw photos; as TIFF files, many of them would be decoded to their tiny preview."""
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class UnsupportedFormat(DualfuseError):
    """An image in a format that is not decoded; ``name`` is the format."""

    def __init__(self, name: str, advice: str = "convert it to JPEG or PNG") -> None:
        """``advice`` says how the image can be used."""
        super().__init__(f"{name} images are not decoded; {advice}")
        self.name = name


def formats_of(data: bytes) -> tuple[str, ...]:
    """Return the names by which Pillow may decode a file; raises ``UnsupportedFormat`` for a format that it cannot."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis") or (brand in _HEIF and b"avif" in data[12:64]):
        if not features.check("avif"):
            raise UnsupportedFormat("AVIF", "install a newer Pillow, or convert them to JPEG or PNG")
        return ("AVIF",)
    if brand in _HEIF:
        try:
            import pillow_heif
        except ImportError:
            raise UnsupportedFormat(
                "HEIC", "in a checkout of dualfuse run: pip install '.[heif]'; or convert them to JPEG or PNG"
            ) from None
        pillow_heif.register_heif_opener()
        return ("HEIF",)
    names = {
        "JPEG 2000": data[4:8] == b"jP  " or data.startswith(b"\xff\x4f\xff\x51"),
        "JPEG XL": data[4:8] == b"JXL " or data.startswith(b"\xff\x0a"),
        "raw": brand == b"crx " or data[8:10] == b"CR",
        "Photoshop": data.startswith(b"8BPS"),
        "SVG": b"<svg" in data[:1024],
    }
    if name := next((name for name, matches in names.items() if matches), ""):
        raise UnsupportedFormat(name)
    return FORMATS


def check_suffix(path: Path) -> None:
    """Raise ``UnsupportedFormat`` for a raw photo."""
    if path.suffix.lower() in RAW_SUFFIXES:
        raise UnsupportedFormat("raw")
