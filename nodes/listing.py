"""What the front end asks for while somebody types: which banks there are, their concepts, and the small pictures of these.

Routes of the host's own server. They read names and headers, never weights, and reach nothing but concept files in banks.
"""

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web
from server import PromptServer

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.bank.header import NAME, Header, read_header, read_preview
from ..cidm_ops.bank.index import SUFFIX, stamp
from ..cidm_ops.bank.thumbnails import THUMBNAIL, decoded, thumbnail
from ..cidm_ops.doodle.files import TEN
from .bank import bank_folder, bank_names

NO_SNIFFING = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


def check(name: str) -> str:
    """Return the name itself. Raises 400 for what is no name of a bank or a concept."""
    if not NAME.fullmatch(name):
        raise web.HTTPBadRequest(text=f"name {name[:80]!r}: expected 1 to 64 letters, digits, '-' or '_', starting with a letter or digit")
    return name


def find_bank(name: str) -> Path:
    """Return the folder of a bank. Raises 400 for what is no name, 404 where no bank has it."""
    check(name)
    try:
        folder = bank_folder(name)
    except ValueError as error:  # a bank has it in another case
        raise web.HTTPNotFound(text=str(error)) from error
    if not folder.is_dir():
        raise web.HTTPNotFound(text=f"there is no bank {name!r} yet")
    return folder


@lru_cache(maxsize=4096)
def picture(file: Path, now: tuple[int, ...]) -> bytes:
    """The thumbnail in a concept file as a JPEG of ours, empty if it has none that can be shown; ``now`` is the file's stamp.

    What whoever wrote the file put there is decoded here, with bounds, and never sent on as it is.
    """
    try:
        inside = read_preview(file) if now else b""
        return thumbnail(decoded(inside, THUMBNAIL)) if inside else b""
    except (ValueError, OSError, RuntimeError, MemoryError):
        return b""


def picture_of(folder: Path, name: str) -> bytes:
    """Return the thumbnail of a concept in a folder, as ``picture`` does. Raises 400 for what is no name."""
    file = folder / f"{check(name)}{SUFFIX}"
    return picture(file, tuple(stamp(file)))


def describe(folder: Path, headers: Mapping[str, Header]) -> list[dict[str, Any]]:
    """Describe concepts in the order learned: name, class word, all that may be typed for it, and whether there is a thumbnail."""
    return [
        {
            "name": name,
            "class_word": header["class_word"],
            "words": list(dict.fromkeys([f"<{name}>", *header["words"], *header["triggers"]])),
            "thumbnail": bool(picture_of(folder, name)),
        }
        for name, header in headers.items()
    ]


def read_bank(name: str) -> list[dict[str, Any]]:
    """Describe the concepts of a bank; files that are damaged are left out. Raises 500 for a folder that cannot be read."""
    folder = find_bank(name)
    try:
        return describe(folder, Bank(folder).headers)
    except OSError as error:
        raise web.HTTPInternalServerError(text=f"bank {name!r} cannot be read: {error.strerror or 'the system refuses'}") from error


def read_doodle() -> list[dict[str, Any]]:
    """Describe the ten concepts that ship, which a bank of Doodle has from its first run on."""
    headers = sorted((read_header(file) for file in TEN.glob(f"*{SUFFIX}")), key=lambda header: header["task"])
    return describe(TEN, {header["name"]: header for header in headers})


def show(found: bytes, name: str) -> web.Response:
    """Answer with a picture. Raises 404 where there is none."""
    if not found:
        raise web.HTTPNotFound(text=f"there is no thumbnail of a concept {name!r}")
    return web.Response(body=found, content_type="image/jpeg", headers=NO_SNIFFING)


async def get_banks(request: web.Request) -> web.Response:
    return web.json_response(await asyncio.to_thread(bank_names))


async def get_bank(request: web.Request) -> web.Response:
    return web.json_response(await asyncio.to_thread(read_bank, request.match_info["bank"]))


async def get_thumbnail(request: web.Request) -> web.Response:
    bank, concept = request.match_info["bank"], request.match_info["concept"]
    return show(await asyncio.to_thread(lambda: picture_of(find_bank(bank), concept)), concept)


async def get_doodle(request: web.Request) -> web.Response:
    return web.json_response(await asyncio.to_thread(read_doodle))


async def get_doodle_thumbnail(request: web.Request) -> web.Response:
    concept = request.match_info["concept"]
    return show(await asyncio.to_thread(picture_of, TEN, concept), concept)


ROUTES = {
    "/cidm/banks": get_banks,
    "/cidm/banks/{bank}": get_bank,
    "/cidm/banks/{bank}/{concept}/thumbnail": get_thumbnail,
    "/cidm/doodle": get_doodle,
    "/cidm/doodle/{concept}/thumbnail": get_doodle_thumbnail,
}


def add_routes() -> None:
    """Add the routes to the host's, which it serves under ``/api`` too. To be called while it loads its packs. Who loads nodes without a
    server has nobody to ask for lists.
    """
    if hasattr(PromptServer, "instance"):
        for path, answer in ROUTES.items():
            PromptServer.instance.routes.get(path)(answer)
