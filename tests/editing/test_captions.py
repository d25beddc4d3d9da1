from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest

from emcid_jax.editing.captions import read_captions
from emcid_jax.errors import UserError


def test_text_and_jsonl_hold_the_same(tmp_path):
    captions = [f"a café number {i}" for i in range(20)]
    text, lines = tmp_path / "captions.txt", tmp_path / "captions.jsonl"
    text.write_text("\n\n".join(captions) + "\n", encoding="utf-8")
    lines.write_text("\n".join(json.dumps({"caption": c, "id": 1}) for c in captions))
    assert sorted(read_captions(str(text), 100, 0)) == sorted(captions)
    for seed in (0, 1):
        picked = read_captions(str(text), 7, seed)
        assert picked == read_captions(str(lines), 7, seed)
        assert len(set(picked)) == 7
        assert set(picked) < set(captions)
    assert read_captions(str(text), 7, 0) != read_captions(str(text), 7, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"caption": "a"}\n{"text": "b"}\n', r'x\.jsonl:2: no text in field "caption"'),
        ('{"caption": "a"}\n\n[3]\n', r"x\.jsonl:3: no text"),
        ('{"caption": 3}\n', r"x\.jsonl:1: no text"),
        ("a caption\n", r"x\.jsonl:1: not JSON"),
        ('{"caption": " "}\n', "holds no caption"),
    ],
)
def test_bad_jsonl_is_named_by_line(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_captions(str(path), 5, 0)


def test_other_bad_sources(tmp_path):
    with pytest.raises(UserError, match=r"captions is '.*absent\.txt'.*No such file"):
        read_captions(str(tmp_path / "absent.txt"), 5, 0)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_captions(str(tmp_path / "latin.txt"), 5, 0)
    with pytest.raises(UserError, match=r"moments\.count is 0"):
        read_captions(str(tmp_path / "latin.txt"), 0, 0)


class Source:
    """What `tfds.data_source` returns: random access, counting what is read."""

    def __init__(self, examples):
        self.examples, self.read = examples, []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.read.append(index)
        return self.examples[index]


class NotFoundError(Exception):
    pass


@pytest.fixture
def fake_tfds(monkeypatch):
    """A stand-in for the package, with one data set per known shape of caption features."""
    sources = {
        "plain": Source([{"caption": f"c{i}".encode(), "image": 0} for i in range(50)]),
        "coco": Source(
            [{"captions": {"text": np.array([f"c{i}a", f"c{i}b"], object)}} for i in range(9)]
        ),
        "records": Source([{"captions": [{"text": b"x"}, {"text": b"y"}]}]),
        "texts": Source([{"text": "only"}]),
        "labels": Source([{"label": 3}]),
    }

    def data_source(name, split):
        assert split == "train"
        if name not in sources:
            raise NotFoundError(f"Dataset {name} not found.\nmore")
        return sources[name]

    module = types.ModuleType("tensorflow_datasets")
    module.data_source = data_source
    module.core = types.SimpleNamespace(DatasetNotFoundError=NotFoundError)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return sources


def test_tfds_reads_what_it_needs(fake_tfds):
    picked = read_captions("tfds:plain", 6, 3)
    assert len(set(picked)) == 6
    assert set(picked) < {f"c{i}" for i in range(50)}
    assert picked == [f"c{i}" for i in fake_tfds["plain"].read]
    assert picked == read_captions("tfds:plain", 6, 3)
    assert picked != read_captions("tfds:plain", 6, 4)


def test_tfds_feature_shapes(fake_tfds):
    assert sorted(read_captions("tfds:coco", 100, 0)) == sorted(
        f"c{i}{which}" for i in range(9) for which in "ab"
    )
    assert len(read_captions("tfds:coco", 3, 0)) == 3
    assert read_captions("tfds:records", 5, 0) == ["x", "y"]
    assert read_captions("tfds:texts", 5, 0) == ["only"]
    with pytest.raises(UserError, match=r"features are \['label'\]"):
        read_captions("tfds:labels", 5, 0)
    with pytest.raises(UserError, match=r"tfds:absent: Dataset absent not found\.$"):
        read_captions("tfds:absent", 5, 0)


def test_tfds_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r'pip install "emcid_jax\[tfds\]"'):
        read_captions("tfds:coco_captions", 5, 0)
