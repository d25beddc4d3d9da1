from __future__ import annotations

import ast
import csv
import json
from pathlib import Path

import pytest
import torch

from emcid_jax.concepts.conflicts import find_conflicts
from emcid_jax.concepts.readers.manifests import read_requests
from emcid_jax.concepts.readers.published import artist_seeds
from emcid_jax.concepts.requests import with_validation
from emcid_jax.concepts.templates import ARTIST_TEMPLATES, DEBIAS_TEMPLATES, OBJECT_TEMPLATES, fill
from emcid_jax.runtime.errors import UserError

HEADER = "source,dest,prompts,seed_train,seeds,source id,dest id\n"
TRAIN = "\"['An image of {}', 'A photo of {}', '{}']\""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "x.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_every_row_of_aice_is_a_request(benchmark_files: Path) -> None:
    path = benchmark_files / "iceb" / "arbitrary_train.csv"
    requests = read_requests(path)
    for request, row in zip(requests, rows_of(path), strict=True):
        assert (request.source, request.dest, request.task) == (
            row["source"],
            row["dest"],
            "update",
        )
        assert list(request.templates) == ast.literal_eval(row["prompts"])
        assert list(request.seeds) == [int(seed) for seed in ast.literal_eval(row["seeds"])]
        assert request.seed == int(row["seed_train"])
        assert request.source_id == int(row["source id"])
        assert request.dest_id == int(row["dest id"])
    assert requests[1].origin == f"{path}:3"
    assert find_conflicts(requests) == []


def test_aice_sentences_are_for_evaluation_and_not_for_editing(benchmark_files: Path) -> None:
    path = benchmark_files / "iceb" / "arbitrary_val.csv"
    requests = read_requests(path)
    for request, row in zip(requests, rows_of(path), strict=True):
        assert request.templates == OBJECT_TEMPLATES
        assert list(request.validation_templates) == ast.literal_eval(row["prompts"])
        assert len(request.seeds) == 5
    literal = [p for r in requests for p in r.validation_templates if "{}" not in p]
    assert literal == [
        "Broccoli florets cooking in a skillet with olive oil.",
        "Spaghetti squash noodles, a healthy alternative to pasta.",
    ]


def test_the_three_aice_files_ask_the_same(benchmark_files: Path) -> None:
    folder = benchmark_files / "iceb"
    val = read_requests(folder / "arbitrary_val.csv")
    by_class = read_requests(folder / "imgnet_aug_edit.json")
    assert len(by_class) >= 10
    assert by_class == val[: len(by_class)]
    assert with_validation(read_requests(folder / "arbitrary_train.csv"), val) == val


def test_rectification_files_read(benchmark_files: Path) -> None:
    folder = benchmark_files / "iceb"
    train = read_requests(folder / "rectification_train.csv")
    val = read_requests(folder / "rectification_val.csv")
    rows = rows_of(folder / "rectification_train.csv")
    assert [request.source for request in train] == [row["source"] for row in rows]
    seeds = [[int(seed) for seed in ast.literal_eval(row["seeds"])] for row in rows]
    assert [list(request.seeds) for request in train] == seeds
    assert [] in seeds
    assert {request.task for request in train + val} == {"rectify"}
    assert {len(request.validation_templates) for request in val} == {5}
    assert find_conflicts(val) == []


def test_artist_lists_erase_towards_art(benchmark_files: Path) -> None:
    (path,) = (benchmark_files / "artists" / "info").glob("erased-1500artists-*.txt")
    artists = json.loads(path.read_text(encoding="utf-8"))
    requests = read_requests(path)
    assert [request.source for request in requests] == artists
    assert {(r.dest, r.task, r.templates) for r in requests} == {("art", "erase", ARTIST_TEMPLATES)}
    assert find_conflicts(requests) == []


def test_artist_seeds_are_those_of_pytorch() -> None:
    generator = torch.Generator().manual_seed(2023)
    drawn = [int(torch.randint(0, 100000, (1,), generator=generator)) for _ in range(1500)]
    assert artist_seeds(1500) == drawn


def test_artist_prompts_give_one_request_per_erased_artist(benchmark_files: Path) -> None:
    (path,) = (benchmark_files / "artists" / "prompts").glob("erased-10artists-*.csv")
    requests = read_requests(path)
    rows = rows_of(path)
    assert {row["type"] for row in rows} == {"erased", "preserved", "holdout"}
    erased = [row for row in rows if row["type"] == "erased"]
    assert len(requests) == len({row["artist"] for row in erased}) < len(erased)
    drawn = [
        (fill(template, request.source).prompt, request.source, str(seed))
        for request in requests
        for template, seed in zip(request.validation_templates, request.seeds, strict=True)
    ]
    expected = [(row["prompt"], row["artist"], row["evaluation_seed"]) for row in erased]
    assert drawn == expected


def test_both_debias_files_ask_the_same_of_shared_professions(benchmark_files: Path) -> None:
    folder = benchmark_files / "debias"
    processed = read_requests(folder / "TIMED_gender_test_set_processed.csv")
    rows = rows_of(folder / "TIMED_gender_test_set_processed.csv")
    for request, row in zip(processed, rows, strict=True):
        assert (request.task, request.templates) == ("debias", DEBIAS_TEMPLATES)
        assert request.dest == (row["female"], row["male"])
        assert request.ratios == (0.5, 0.5)
        assert [fill(t, request.source).prompt for t in request.validation_templates] == [
            row[name] for name in ("validation", "ex1", "ex2", "ex3", "ex4", "ex5")
        ]
    by_source = {request.source: request for request in processed}
    plain = read_requests(folder / "TIMED_gender_test_set.csv")
    assert 0 < len(plain) < len(processed)
    for request in plain:
        assert request == by_source[request.source]


@pytest.mark.parametrize(
    ("name", "source", "dest"),
    [
        ("timed/TIMED_validation_set.csv", "old", "new"),
        ("road/RoAD_validation.csv", "Prompt", "New"),
    ],
)
def test_timed_and_road_read(benchmark_files: Path, name: str, source: str, dest: str) -> None:
    path = benchmark_files / name
    asked = [(row[source].strip(), row[dest].strip()) for row in rows_of(path)]
    assert [(request.source, request.dest) for request in read_requests(path)] == asked


def test_instruction_files_read(benchmark_files: Path) -> None:
    for path in sorted((benchmark_files / "examples").glob("*.json")):
        asked = json.loads(path.read_text(encoding="utf-8"))["requests"]
        requests = read_requests(path)
        assert [(r.source, r.dest, list(r.templates), r.seed) for r in requests] == [
            (a["source"], a["dest"], a["prompts"], a["seed_train"]) for a in asked
        ]
        assert [list(r.image_paths) for r in requests] == [
            a.get("training_img_paths", []) for a in asked
        ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("coco/coco_30k.csv", "columns case_number, source, prompt, evaluation_seed, coco_id"),
        ("iceb/imgnet_aug_test.json", "objects with keys class name, text prompt"),
        ("iceb/class2id.json", "an object with keys tench, goldfish"),
    ],
)
def test_files_that_ask_nothing_are_refused(benchmark_files: Path, name: str, found: str) -> None:
    with pytest.raises(UserError) as caught:
        read_requests(benchmark_files / name)
    (line,) = str(caught.value).splitlines()
    assert f"{name}:1: file: is no known kind of request file (" in line
    assert found in line


def test_own_templates_in_the_published_columns(tmp_path: Path) -> None:
    own = "\"['my {}', 'your {}']\""
    path = write(tmp_path, HEADER + f"a,b,{own},1,[],1,2\nc,d,{own},1,[],3,4\n")
    assert [r.templates for r in read_requests(path)] == [("my {}", "your {}")] * 2
    path = write(tmp_path, HEADER + f"a,b,{TRAIN},1,[],1,1\nc,d,{own},1,[],3,4\n")
    first, second = read_requests(path)
    assert (first.task, first.templates) == ("rectify", OBJECT_TEMPLATES)
    assert second.templates == OBJECT_TEMPLATES
    assert second.validation_templates == ("my {}", "your {}")


def test_failures_in_published_files(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER
        + f"a,b,{TRAIN},x,[],1,2\n"
        + f"c,,{TRAIN},1,\"['1', 'y', 3]\",3,4\n"
        + 'e,f,"[\'unclosed",1,[],5,6\n'
        + f'g,h,{TRAIN},1,"[1, 2]",7,8\n',
    )
    with pytest.raises(UserError) as caught:
        read_requests(path)
    lines = [line.removeprefix(str(path)) for line in str(caught.value).splitlines()]
    assert [line.split(" (")[0] for line in lines] == [
        ":2: seed_train: is text, not an integer",
        ":3: seeds: is text, not an integer",
        ":3: dest: is empty",
        ":4: prompts: is not a list",
        ":5: seeds: has 2 seeds",
    ]


def test_failures_in_class_prompts(tmp_path: Path) -> None:
    good = {
        "class name": "hen",
        "text prompt": "a {}",
        "random seed": "3",
        "class id": 8,
        "dest": "suit",
        "dest id": 834,
    }
    other = good | {"dest": "tie"}
    short = {key: value for key, value in good.items() if key != "dest id"}
    path = tmp_path / "x.json"
    path.write_text("[" + ",\n".join(json.dumps(item) for item in (good, other, short)) + "]")
    with pytest.raises(UserError) as caught:
        read_requests(path)
    lines = [line.removeprefix(str(path)) for line in str(caught.value).splitlines()]
    assert lines == [
        ":2: dest: is a second destination of the class ('tie') — give the class one destination, "
        "as in line 1",
        ":3: dest id: is missing (None) — give every prompt a dest id",
    ]
