"""The AICE protocol: which images, which seeds, which class ids, and how scores are averaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import emcid_jax
from emcid_jax.concepts.readers.manifests import read_requests
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.evaluation.benchmarks.aice.holdout import holdout_from_labels, limited, read_holdout
from emcid_jax.evaluation.benchmarks.aice.protocol import (
    AicePlan,
    as_json,
    plan_requests,
    score_plan,
)
from emcid_jax.evaluation.drawing.draw import Draw, Named
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.runtime.errors import UserError

SPRITES = Path(emcid_jax.__file__).parent / "sprites" / "data"
LABELS = LabelGroup(
    "object",
    tuple(range(6)),
    (
        ("tench", "Tinca tinca"),
        ("goldfish",),
        ("crane", "heron", "Tench bird"),
        ("hen",),
        ("crane",),
        ("suit", "suit of clothes"),
    ),
)
TEMPLATES = ("An image of {}", "A photo of {}", "{}", "One more {}")
SENTENCES = ("A {} in the sun.", "Two of {}s", "Such a {}!", "That {}.", "This {}.")


def request(source: str, dest: str | tuple[str, ...], **options) -> EditRequest:
    return EditRequest(source, dest, options.pop("templates", TEMPLATES), **options)


def plan(*requests: EditRequest, **options):
    return plan_requests(requests, LABELS, SENTENCES, **options)


def test_sets_of_a_benchmark_request() -> None:
    one = request(
        "tench",
        "hen",
        source_id=0,
        dest_id=3,
        seeds=(11, 12, 13, 14, 15),
        validation_templates=("v {} 1", "v {} 2", "v {} 3", "v {} 4", "v {} 5"),
    )
    (scored,), skipped = plan(one)
    assert skipped == ()
    # Templates take the first three of the five seeds, sentences all five.
    assert scored.edit_source == (
        Draw("An image of tench", 11),
        Draw("A photo of tench", 12),
        Draw("tench", 13),
    )
    assert scored.edit_dest == (
        Draw("An image of hen", 11),
        Draw("A photo of hen", 12),
        Draw("hen", 13),
    )
    assert [d.seed for d in scored.general_source] == [11, 12, 13, 14, 15]
    assert scored.general_dest[4] == Draw("v hen 5", 15)
    ((name, draws),) = scored.aliases
    assert name == "Tinca tinca"
    assert draws[1] == Draw("v Tinca tinca 2", 12)


def test_ids_are_found_by_name_and_usual_names_win() -> None:
    (scored,), _ = plan(request("Crane", "Suit of  clothes"))
    assert (scored.source_id, scored.dest_id) == (2, 5)
    # A request may be about another name than the usual one; the usual one is then an alias.
    (scored,), _ = plan(request("heron", "tench"))
    assert [alias.name for alias in scored.aliases] == ["crane", "Tench bird"]


def test_own_sentences_and_seeds_fill_what_a_request_lacks() -> None:
    (first, second), _ = plan(request("tench", "hen", seed=5), request("goldfish", "hen", seed=5))
    assert [d.prompt for d in first.general_source] == [s.replace("{}", "tench") for s in SENTENCES]
    seeds = [d.seed for d in first.general_source]
    assert len(set(seeds)) == 5
    assert seeds != [d.seed for d in second.general_source]
    assert [d.seed for d in first.edit_source] == seeds[:3]
    (again,), _ = plan(request("tench", "hen", seed=5))
    assert again.general_source == first.general_source
    (other,), _ = plan(request("tench", "hen", seed=6))
    assert other.general_source != first.general_source


def test_literal_sentences_get_a_slot_and_keep_their_seed() -> None:
    one = request(
        "hen",
        "tench",
        seeds=(1, 2, 3),
        validation_templates=("Hens in a yard.", "Nothing named here.", "A {}."),
    )
    (scored,), _ = plan(one)
    assert scored.general_source == (Draw("hens in a yard.", 1), Draw("A hen.", 3))
    assert scored.general_dest == (Draw("tenchs in a yard.", 1), Draw("A tench.", 3))


def test_limits() -> None:
    (scored,), _ = plan(request("tench", "hen"), prompts_per_request=2, aliases=False)
    assert len(scored.edit_source) == len(scored.general_dest) == 2
    assert scored.aliases == ()


def test_requests_that_cannot_be_scored_are_named() -> None:
    debias = EditRequest("hen", ("tench", "suit"), TEMPLATES, task="debias", ratios=(0.5, 0.5))
    scored, skipped = plan(
        request("tench", "Monet"),
        debias,
        request("tench", "Tinca tinca"),
        request("tench", "hen", source_id=77),
        request("tench", "hen"),
    )
    assert [one.index for one in scored] == [4]
    assert [line.split(":")[0] for line in skipped] == [
        f"request {i} ({name!r})" for i, name in enumerate(("tench", "hen", "tench", "tench"), 1)
    ]
    for line, words in zip(
        skipped, ("'Monet' (destination)", "several", "one class", "77 is outside"), strict=True
    ):
        assert words in line


def test_every_image_is_listed_once() -> None:
    scored, _ = plan(request("tench", "hen", seed=1), request("tench", "suit", seed=1))
    holdout = (Named("crane", OBJECT, 4, (Draw("h", 1), scored[0].edit_source[0])),)
    draws = AicePlan(scored, holdout).draws()
    assert len(draws) == len(set(draws))
    # 3 + 5 source images and 5 alias images are shared; 3 + 5 destination images are not.
    assert len(draws) == 8 + 5 + 2 * 8 + 1


def test_scores_by_hand() -> None:
    scored, _ = plan(
        request("tench", "hen", seeds=(1, 2), validation_templates=("a {}", "b {}")),
        prompts_per_request=1,
    )
    holdout = (Named("suit", OBJECT, 5, (Draw("h", 1), Draw("h", 2))),)
    whole = AicePlan(scored, holdout, ("left out",))
    one = scored[0]

    def vector(**at: float) -> np.ndarray:
        found = np.zeros(6, np.float32)
        for name, value in at.items():
            found[LABELS.find(name) or 0] = value
        return found

    pre = {draw: vector(tench=0.5, hen=0.25) for draw in whole.draws()}
    post = {draw: vector(tench=0.125, hen=0.75) for draw in whole.draws()}
    pre |= {Draw("h", 1): vector(suit=1), Draw("h", 2): vector(suit=0.5)}
    post |= {Draw("h", 1): vector(suit=0.5), Draw("h", 2): vector(suit=0.5)}
    result = score_plan(whole, pre, post)
    record = result.records[0]
    assert record.edit == {
        "pre_source": 0.5,
        "post_source": 0.125,
        "pre_source_dest": 0.25,
        "post_source_dest": 0.75,
        "pre_dest": 0.25,
        "post_dest": 0.75,
    }
    assert record.aliases["Tinca tinca"]["post_source_dest"] == 0.75
    assert result.holdout[0][2:] == (0.75, 0.5)
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values["efficacy_source_forget"] == 0.375
    assert values["generalization_source2dest"] == 0.5
    assert values["alias_forget"] == 0.375
    assert values["holdout_delta"] == -0.25
    assert values["average_score"] == 0.125
    assert result.raw["pre_cls_score_specificity"] == 0.75
    assert result.skipped == ("left out",)
    assert result.images == 7
    assert len(one.edit_source) == 1


def test_result_as_json() -> None:
    scored, _ = plan(request("tench", "hen"))
    whole = AicePlan(scored, (), ("why",))
    scores = {draw: np.full(6, 1 / 6, np.float32) for draw in whole.draws()}
    found = json.loads(json.dumps(as_json(score_plan(whole, scores, scores)), allow_nan=False))
    metric = found["aice"]["efficacy_source2dest"]
    assert metric == {
        "value": 0.0,
        "low": None,
        "high": None,
        "count": 1,
        "bound": pytest.approx(5 / 6),
        "reachable": 0.0,
    }
    assert found["records"][0]["source"] == "tench"
    assert found["records"][0]["aliases"].keys() == {"Tinca tinca"}
    assert found["skipped"] == ["why"]


def test_nothing_scored_gives_no_aggregates() -> None:
    result = score_plan(AicePlan((), (), ("why",)), {}, {})
    assert (result.metrics, result.records, result.images) == ({}, (), 0)


def test_holdout_from_labels_leaves_out_edited_classes_and_their_namesakes() -> None:
    found = holdout_from_labels(LABELS, {2}, SENTENCES, seed=3)
    assert [h.label for h in found] == [0, 1, 3, 5]  # 4 is another "crane"
    assert all(len(h.draws) == 3 for h in found)
    # Class 3 starts with the fourth sentence, so that all sentences are used.
    assert [d.prompt for d in found[2].draws] == ["That hen.", "This hen.", "A hen in the sun."]
    assert found == holdout_from_labels(LABELS, {2}, SENTENCES, seed=3)
    few = limited(found, classes=2, prompts=1, seed=1)
    assert len(few) == 2
    assert all(len(h.draws) == 1 for h in few)
    assert [h.label for h in few] == sorted(h.label for h in few)
    assert limited(found) == found
    assert limited(found, classes=9) == found


def test_holdout_file_uses_its_own_seeds(tmp_path: Path) -> None:
    rows = [
        {"class name": name, "class id": i, "text prompt": f"{name} {k}", "random seed": seed}
        for i, name in ((1, "goldfish"), (3, "hen"))
        for k, seed in enumerate(("70", 80, "90", 1, 2))
    ]
    path = tmp_path / "test.json"
    path.write_text(json.dumps(rows))
    goldfish, hen = read_holdout(path, LABELS)
    draws = (Draw("goldfish 0", 70), Draw("goldfish 1", 80), Draw("goldfish 2", 90))
    assert goldfish == Named("goldfish", OBJECT, 1, draws)
    assert hen.label == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class id": 6}, "test.json:1: class id: is outside the judge's 6 classes (6)"),
        ({"class id": "1"}, "test.json:1: class id: is missing or of another kind ('1')"),
        ({"random seed": "soon"}, "test.json:1: random seed: is no number ('soon')"),
        ({"text prompt": None}, "test.json:1: text prompt: is missing or of another kind (None)"),
    ],
)
def test_holdout_file_errors_name_the_row(tmp_path: Path, change: dict, words: str) -> None:
    row = {"class name": "hen", "class id": 3, "text prompt": "a hen", "random seed": 1}
    path = tmp_path / "test.json"
    path.write_text(json.dumps([row | change]))
    with pytest.raises(UserError) as error:
        read_holdout(path, LABELS)
    assert words in str(error.value)


def test_holdout_file_that_is_no_list(tmp_path: Path) -> None:
    for content in ("{}", "[1]", "no json"):
        path = tmp_path / "test.json"
        path.write_text(content)
        with pytest.raises(UserError, match=r"test\.json"):
            read_holdout(path, LABELS)
    with pytest.raises(UserError, match="missing"):
        read_holdout(tmp_path / "missing", LABELS)


def test_published_files_give_the_published_counts(benchmark_files: Path) -> None:
    """Of the first ten edits; the names of all 1,000 classes are those of the sprite world."""
    iceb = benchmark_files / "iceb"
    lines = (SPRITES / "objects.jsonl").read_text("utf8").splitlines()
    classes = [json.loads(line) for line in lines]
    labels = LabelGroup("object", tuple(range(1000)), tuple(tuple(c["names"]) for c in classes))
    holdout = read_holdout(iceb / "imgnet_aug_test.json", labels)
    asked = json.loads((iceb / "imgnet_aug_test.json").read_text("utf8"))
    assert {h.label for h in holdout} == {one["class id"] for one in asked}
    assert {len(h.draws) for h in holdout} == {3}
    requests = read_requests(iceb / "arbitrary_val.csv", TEMPLATES[:3])
    scored, skipped = plan_requests(requests, labels, SENTENCES)
    assert skipped == ()
    assert sum(len(r.aliases) for r in scored[:10]) == 12
    assert sum(bool(r.aliases) for r in scored[:10]) == 5
    assert {r.dest_id for r in scored} <= {h.label for h in holdout}
    assert not {r.source_id for r in scored} & {h.label for h in holdout}
