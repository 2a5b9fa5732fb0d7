"""How a glTF model looks: materials, textures and images, carried from a file to the next without being understood."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geom.errors import FileFormatError
from geom.io.gltf_document import Document, Json, integer, resource

__all__ = ["read_look", "write_look"]

_KEPT = ("materials", "textures", "samplers")
_PLAIN = ("name", "doubleSided", "alphaMode", "alphaCutoff", "emissiveFactor")
_FACTORS = ("baseColorFactor", "metallicFactor", "roughnessFactor")
_EXTENSIONS = ("KHR_materials_", "KHR_texture_", "EXT_texture_")
_SUFFIXES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


def read_look(document: Document) -> tuple[str, Tensor | None]:
    """JSON of the materials, textures, samplers and images, "" where there are none, and the bytes of the images.

    An image is [start, length, MIME type, name] in the bytes. Where one cannot be found or read, all go, and what
    materials say of textures. Raises: FileFormatError.
    """
    kept = {kind: document.lists[kind] for kind in _KEPT if document.lists[kind]}
    images: list[list[Any]] = []
    body: list[bytes] = []
    try:
        for item in document.lists["images"]:
            data, kind = _image(document, item)
            name = item.get("name")
            images.append([sum(map(len, body)), len(data), kind, name if isinstance(name, str) else ""])
            body.append(data)
    except FileFormatError:
        kept, images, body = {"materials": [_without_textures(m) for m in kept.get("materials", [])]}, [], []
    if not any(kept.values()):
        return "", None
    found: Json = {**kept, "images": images}
    for key in ("extensionsUsed", "extensionsRequired"):
        names = document.json.get(key)
        if isinstance(names, list):
            found[key] = [n for n in names if isinstance(n, str) and n.startswith(_EXTENSIONS)]
    raw = np.frombuffer(b"".join(body), np.uint8).copy()
    return json.dumps(found, separators=(",", ":")), torch.from_numpy(raw) if images else None


def write_look(look: str, images: Tensor | None) -> tuple[Json, list[bytes]]:
    """What `read_look` found, as the lists of a document and the bytes of each image, whose view is not set yet."""
    if not look:
        return {}, []
    found: Json = json.loads(look)
    stored = found.pop("images")
    raw = b"" if images is None else images.cpu().numpy().tobytes()
    named = [{"mimeType": kind, **({"name": name} if name else {})} for _, _, kind, name in stored]
    lists = {k: v for k, v in (*found.items(), ("images", named)) if v}
    return lists, [raw[start : start + length] for start, length, _, _ in stored]


def _image(document: Document, item: Json) -> tuple[bytes, str]:
    kind = item.get("mimeType")
    if "bufferView" in item:
        data = document.view_bytes(integer(document.source, item, "bufferView", 0))
    else:
        uri = item.get("uri")
        data = resource(document.source, uri, document.source.data[:4] == b"glTF")
        head = str(uri).partition(",")[0].removeprefix("data:").partition(";")[0]
        ending = _SUFFIXES.get(str(uri)[str(uri).rfind(".") :].lower())
        kind = kind or (head if str(uri).startswith("data:") else ending)
    if not isinstance(kind, str) or not kind:
        kind = "image/png" if data[:4] == b"\x89PNG" else "image/jpeg"
    return data, kind


def _without_textures(material: Json) -> Json:
    found = {key: material[key] for key in _PLAIN if key in material}
    surface = material.get("pbrMetallicRoughness")
    if isinstance(surface, dict):
        found["pbrMetallicRoughness"] = {key: surface[key] for key in _FACTORS if key in surface}
    return found
