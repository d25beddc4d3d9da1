from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from emcid_jax.editing.moments.captions import read_captions
from emcid_jax.runtime.errors import UserError


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
        ('{"caption": "a"}\n{"text": "b"}\n', r"x\.jsonl:2: caption: is no text \({'text': 'b'}\)"),
        ('{"caption": "a"}\n\n[3]\n', r"x\.jsonl:3: caption: is no text"),
        ('{"caption": 3}\n', r"x\.jsonl:1: caption: is no text"),
        ('{"caption": "a"}\n{"caption": "b"\n', r"x\.jsonl:2: json: Expecting ',' delimiter"),
        ("a caption\n", r"x\.jsonl:1: moments\.captions: is no jsonl file"),
        ('{"caption": " "}\n', "holds no caption"),
    ],
)
def test_bad_jsonl_is_named_by_line(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_captions(str(path), 5, 0)


def test_other_bad_sources(tmp_path):
    with pytest.raises(UserError, match=r"captions is '.*absent\.txt': no such file"):
        read_captions(str(tmp_path / "absent.txt"), 5, 0)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_captions(str(tmp_path / "latin.txt"), 5, 0)
    with pytest.raises(UserError, match=r"moments\.count is 0"):
        read_captions(str(tmp_path / "latin.txt"), 0, 0)


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """Real data sets on disk (array_record, no TensorFlow), one per known shape of captions."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    text = tfds.features.Text()
    content = {
        "own_plain": ({"caption": text}, [{"caption": f"é{i}"} for i in range(50)]),
        "own_coco": (
            {"captions": tfds.features.Sequence({"id": np.int64, "text": text})},
            [{"captions": [{"id": i, "text": f"{i}{w}"} for w in "ab"]} for i in range(9)],
        ),
        "own_texts": ({"text": text}, [{"text": " only "}, {"text": " "}]),
        "own_labels": ({"label": np.int64}, [{"label": 3}]),
    }

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Found by what lies on disk, as a user's own data set is."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(content[self.name][0])
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, download):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(content[self.name][1])

    for name in content:
        Written.name = name
        Written(data_dir=folder, file_format="array_record").download_and_prepare()
    tfds.core.add_data_dir(folder)
    yield
    tfds.core.utils.file_utils.clear_registered_data_dirs()


def test_tfds_feature_shapes(data_sets):
    assert sorted(read_captions("tfds:own_coco", 100, 0)) == sorted(
        f"{i}{which}" for i in range(9) for which in "ab"
    )
    assert len(read_captions("tfds:own_coco", 3, 0)) == 3
    assert read_captions("tfds:own_texts", 5, 0) == ["only"]
    with pytest.raises(UserError, match=r"features are \['label'\]"):
        read_captions("tfds:own_labels", 5, 0)
    with pytest.raises(UserError, match=r"tfds:absent: Dataset absent not found\.$"):
        read_captions("tfds:absent", 5, 0)


def test_tfds_reads_what_it_needs(data_sets, monkeypatch):
    import tensorflow_datasets as tfds

    class Counting:
        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def __getitem__(self, index):
            read.append(self.source[index]["caption"].decode())
            return self.source[index]

    read, data_source = [], tfds.data_source
    monkeypatch.setattr(tfds, "data_source", lambda *a, **kw: Counting(data_source(*a, **kw)))
    picked = read_captions("tfds:own_plain", 6, 3)
    assert picked == read
    assert len(set(picked)) == 6
    assert set(picked) < {f"é{i}" for i in range(50)}
    assert picked == read_captions("tfds:own_plain", 6, 3)
    assert picked != read_captions("tfds:own_plain", 6, 4)


def test_tfds_code_that_needs_tensorflow(data_sets, monkeypatch):
    import tensorflow_datasets as tfds

    def data_source(*arguments, **options):
        raise ModuleNotFoundError("Failed to construct dataset: No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "data_source", data_source)
    with pytest.raises(UserError, match=r"tfds:coco_captions: .*No module named 'tensorflow'"):
        read_captions("tfds:coco_captions", 5, 0)


def test_tfds_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r'pip install "emcid_jax\[tfds\]"'):
        read_captions("tfds:coco_captions", 5, 0)
