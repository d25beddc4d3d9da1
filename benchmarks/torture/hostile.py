"""Names, files and links made to do harm. Every one is a case; chance plays no part."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.torture import child, kills
from benchmarks.torture.child import Ended
from benchmarks.torture.content import content
from benchmarks.torture.verdicts import Row, Verdict, of_run
from benchmarks.torture.words import NAMES

KIND_NAMES, KIND_FILES, KIND_LINKS = "hostile names", "exploding files", "links and pipes"


def names(place: Path, number: int, seed: int) -> Row:
    """One name as a source and as a destination: read, shown, drawn and written into pages."""
    name = NAMES[number]
    folder = _folder(place, number)
    request = {"source": name, "dest": "dog", "templates": ["a {}"], "seed": 1}
    other = {"source": "dog", "dest": name, "templates": ["a {}"], "seed": 2}
    text = json.dumps({"requests": [request, other]}, ensure_ascii=False)
    (folder / "requests.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    add = kills.bank(place, folder, "add") | {"requests": {"path": str(folder / "requests.json")}}
    first = _run(place, add, folder / "work")
    verdict, detail = of_run(first)
    if verdict != "right":
        return _row(KIND_NAMES, number, (verdict, f"{name[:40]!r}: {detail}"), folder)
    for operation in ("list", "show", "conflicts", "solve"):
        ended = _run(place, kills.bank(place, folder, operation), folder / "work")
        result = _shown(ended)
        if result[0] != "right":
            return _row(
                KIND_NAMES, number, (result[0], f"{name[:40]!r} {operation}: {result[1]}"), folder
            )
    show = kills.edit_file(place, folder, "show") | {"edit": str(folder / "work/edit.safetensors")}
    result = _shown(_run(place, show, folder / "work"))
    pages = "".join(p.read_text("utf-8") for p in (folder / "work").rglob("*.html"))
    if any(mark in pages for mark in ("<script>alert", "<img src=x", 'x" onmouse')):
        result = "wrong", "markup of a name is in a page"
    if (place / "pwned").exists() or Path("pwned").exists():
        result = "wrong", "a name was executed"
    return _row(KIND_NAMES, number, result, folder)


def files(place: Path, number: int, seed: int) -> Row:
    """A small file that asks for endless work or memory."""
    name, make = FILES[number]
    folder = _folder(place, number)
    values = kills.bank(place, folder, "add")
    values = make(folder, values)
    ended = _run(place, values, folder / "work", limit=120.0)
    verdict, detail = of_run(ended)
    if verdict == "right":
        verdict, detail = "wrong", "was taken"
    return _row(KIND_FILES, number, (verdict, f"{name}: {detail}"), folder)


def links(place: Path, number: int, seed: int) -> Row:
    """A link, pipe or folder where the program opens or replaces something of its own."""
    name, make = LINKS[number]
    folder = _folder(place, number)
    target = folder / "precious"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    (folder / "file.txt").write_text("years of work")
    shutil.copytree(place / "starts" / "solved", folder, dirs_exist_ok=True)
    make(folder)
    before = content(target), (folder / "file.txt").read_text()
    ended = _run(place, kills.bank(place, folder, "solve"), folder / "work", limit=120.0)
    result = of_run(ended)
    if (content(target), (folder / "file.txt").read_text()) != before:
        result = "wrong", "what the link leads to was changed"
    return _row(KIND_LINKS, number, (result[0], f"{name}: {result[1]}"), folder)


def _yaml_bomb(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return _manifest(folder, values, "\n".join([*rows, "requests: *a9"]).encode(), "yaml")


def _yaml_merges(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    rows = ["a0: &a0 {k0: 1}"]
    rows += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)]
    return _manifest(folder, values, "\n".join([*rows, "requests: [*a8]"]).encode(), "yaml")


def _deep(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    return _manifest(folder, values, b"[" * 200_000, "json")


def _deep_yaml(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    return _manifest(folder, values, b"requests: " + b"[" * 20_000, "yaml")


def _expression(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps([{"source": "dog", "dest": "cat", "templates": "[" + "1+" * 30_000 + "1]"}])
    return _manifest(folder, values, text.encode(), "json")


def _long_number(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    text = '[{"source": "dog", "dest": "cat", "seed": ' + "9" * 10_000 + "}]"
    return _manifest(folder, values, text.encode(), "json")


def _square_picture(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """A PNG of 13,300 pixels square in a few kilobytes."""
    side = 13_300
    rows = zlib.compress(b"\0" * ((side // 8 + 2) * side), 9)
    picture = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    picture.seek(0, io.SEEK_END)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    for kind, data in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")):
        picture.write(struct.pack(">I", len(data)) + kind + data)
        picture.write(struct.pack(">I", zlib.crc32(kind + data)))
    (folder / "large.png").write_bytes(picture.getvalue())
    request = {
        "source": "dog", "dest": "cat", "templates": ["a {}"],
        "image_paths": [str(folder / "large.png")],
    }  # fmt: skip
    values["stage_one"] |= {"objective": "ablate-dest", "image_source": "files"}
    return _manifest(folder, values, json.dumps([request]).encode(), "json")


def _many_blocks(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    return _model(folder, values, "text_encoder/config.json", num_hidden_layers=100_000)


def _wide(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    return _model(folder, values, "unet/config.json", sample_size=2**20)


def _many_steps(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    return _model(folder, values, "scheduler/scheduler_config.json", num_train_timesteps=10**12)


def _large_header(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    values = _model(folder, values, "vae/config.json")
    file = folder / "model" / "text_encoder" / "model.safetensors"
    file.unlink()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", 2**33))
        out.truncate(2**33 + 8)  # Takes no disk.
    return values


def _manifest(folder: Path, values: dict[str, Any], raw: bytes, suffix: str) -> dict[str, Any]:
    file = folder / f"requests.{suffix}"
    file.write_bytes(raw)
    return values | {"requests": {"path": str(file)}}


def _model(folder: Path, values: dict[str, Any], file: str, **changes: Any) -> dict[str, Any]:
    source = Path(values["model"]["path"])
    shutil.copytree(source, folder / "model")
    said = json.loads((source / file).read_bytes()) | changes
    (folder / "model" / file).write_text(json.dumps(said))
    requests = {"path": str(source.parent / "more.json")}
    return values | {"model": {"path": str(folder / "model")}, "requests": requests}


def _replaced(name: str, make: Callable[[Path, Path], object]) -> Callable[[Path], None]:
    """Puts something else at `name`."""

    def put(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        make(path, folder)

    return put


def _to_folder(path: Path, folder: Path) -> None:
    path.symlink_to(folder / "precious")


def _to_file(path: Path, folder: Path) -> None:
    path.symlink_to(folder / "file.txt")


def _foreign(path: Path, folder: Path) -> None:
    """A folder of the user's that this program did not write."""
    shutil.move(folder / "precious", path)
    (folder / "precious").symlink_to(path)


FILES: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("YAML aliases", _yaml_bomb),
    ("YAML merges", _yaml_merges),
    ("deep JSON", _deep),
    ("deep YAML", _deep_yaml),
    ("long expression", _expression),
    ("long number", _long_number),
    ("square picture", _square_picture),
    ("100,000 blocks", _many_blocks),
    ("wide latents", _wide),
    ("many noise steps", _many_steps),
    ("header of 8 GiB", _large_header),
)
LINKS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("lock is a link", _replaced("work/.lock", _to_file)),
    ("lock is a pipe", _replaced("work/.lock", lambda path, _: os.mkfifo(path))),
    ("bank's lock is a link", _replaced("bank/.lock", _to_file)),
    ("bank's list is a pipe", _replaced("bank/concepts.json", lambda path, _: os.mkfifo(path))),
    ("text encoder is a link", _replaced("work/text_encoder", _to_folder)),
    ("text encoder is foreign", _replaced("work/text_encoder", _foreign)),
    ("edit file is a link", _replaced("work/edit.safetensors", _to_file)),
    ("edit file is a folder", _replaced("work/edit.safetensors", _foreign)),
    ("log is a link", _replaced("work/metrics.jsonl", _to_file)),
    ("log is a pipe", _replaced("work/metrics.jsonl", lambda path, _: os.mkfifo(path))),
    ("config is a link", _replaced("work/config.json", _to_file)),
    ("moments are a link", _replaced("work/moments", _to_folder)),
    ("workdir is a file", _replaced("work", lambda path, _: path.write_text("mine"))),
    ("workdir is a link in a circle", _replaced("work", lambda path, _: path.symlink_to(path))),
)  # fmt: skip
CASES: dict[str, tuple[int, Callable[[Path, int, int], Row]]] = {
    KIND_NAMES: (len(NAMES), names),
    KIND_FILES: (len(FILES), files),
    KIND_LINKS: (len(LINKS), links),
}


def _shown(ended: Ended) -> tuple[Verdict, str]:
    """What is printed must be printable, too."""
    hidden = sorted({c for c in ended.out + ended.err if not c.isprintable() and c not in "\n\t"})
    if hidden:
        return "wrong", f"the terminal gets {hidden!r}"
    verdict, detail = of_run(ended)
    return ("right", "") if verdict in ("right", "clear error") else (verdict, detail)


def _run(place: Path, values: dict[str, Any], workdir: Path, limit: float = 180.0) -> Ended:
    return child.run(child.command(values, workdir, place / "logs"), place / "logs", limit=limit)


def _folder(place: Path, number: int) -> Path:
    folder = place / "runs" / f"hostile-{number}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _row(kind: str, number: int, result: tuple[Verdict, str], folder: Path) -> Row:
    shutil.rmtree(folder, ignore_errors=True)
    return Row(kind, number, *result)
